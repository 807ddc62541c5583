"""DTS (SiglipAE in the original): four frames' feature maps → one, by attention over space and time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn


def bilinear_matrix(source: int, target: int) -> np.ndarray:
    """[target, source] weights of bilinear resizing with half-pixel centres and no antialiasing."""
    places = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0.0)
    low = np.minimum(places.astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    weights = np.zeros((target, source))
    np.add.at(weights, (np.arange(target), low), 1 - (places - low))
    np.add.at(weights, (np.arange(target), high), places - low)
    return weights.astype(np.float32)


def resize(features: jax.Array, source: int, target: int) -> jax.Array:
    """Patch features [F, source², C] → maps [F, target, target, C]; interpolated in fp32."""
    maps = rearrange(features, "f (y x) c -> f y x c", y=source).astype(jnp.float32)
    w = bilinear_matrix(source, target)
    resized = jnp.einsum("ty,ux,fyxc->ftuc", w, w, maps, precision=jax.lax.Precision.HIGHEST)
    return resized.astype(features.dtype)


def regroup(maps: jax.Array, frames: int = 4) -> jax.Array:
    """[frames·G, H, W, C] → [G, frames, H, W, C], by the original's raw reinterpretation of memory.

    The original views the contiguous (frames·G, C, H, W) array as (G, C, frames, H, W). That is not
    a transpose: it mixes frames and channels. Released weights were trained with it.
    """
    raw = rearrange(maps, "(g f) y x c -> g (f c) y x", f=frames)
    return rearrange(raw, "g (c t) y x -> g t y x c", t=frames)


class SpatialAttention(nn.Module):
    """One head over the places of each time step; residual. Shapes: [G, T, H, W, C]."""

    norm_groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        h = nn.GroupNorm(self.norm_groups, epsilon=1e-6, use_fast_variance=False, name="norm")(x)
        h = rearrange(h, "g t y x c -> g t (y x) c")
        q, k, v = (nn.Dense(channels, name=name)(h) for name in ("query", "key", "value"))
        logits = jnp.einsum("gtnc,gtmc->gtnm", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * channels**-0.5, axis=-1).astype(v.dtype)
        mixed = nn.Dense(channels, name="out")(jnp.einsum("gtnm,gtmc->gtnc", weights, v))
        return x + rearrange(mixed, "g t (y x) c -> g t y x c", y=x.shape[2])


class TemporalAttention(nn.Module):
    """One head over time at each place, with relative-position tables; residual. [G, T, H, W, C]."""

    norm_groups: int
    max_relative: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        steps, channels = x.shape[1], x.shape[-1]

        def table(name):
            return self.param(name, nn.initializers.normal(0.02), (2 * self.max_relative + 1, channels)).astype(x.dtype)

        offsets = np.arange(steps)[None, :] - np.arange(steps)[:, None]
        rows = np.clip(offsets, -self.max_relative, self.max_relative) + self.max_relative
        relative_key, relative_value = table("relative_key")[rows], table("relative_value")[rows]

        places = rearrange(x, "g t y x c -> (g y x) t c")
        h = nn.GroupNorm(self.norm_groups, epsilon=1e-6, use_fast_variance=False, name="norm")(places)
        q, k, v = jnp.split(nn.Dense(3 * channels, name="qkv")(h), 3, axis=-1)
        scale = channels**-0.25
        q, k = q * scale, k * scale
        # The original adds the relative term transposed, q_j·R[j, i] where q_i·R[i, j] is usual: keep it.
        logits = jnp.einsum("pic,pjc->pij", q, k) + jnp.einsum("pjc,jic->pij", q, relative_key)
        weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(v.dtype)
        mixed = jnp.einsum("pij,pjc->pic", weights, v) + jnp.einsum("pij,ijc->pic", weights, relative_value)
        mixed = nn.Dense(channels, name="out")(mixed)
        return x + rearrange(mixed, "(g y x) t c -> g t y x c", y=x.shape[2], x=x.shape[3])


class HalveTime(nn.Module):
    """3×3×3 convolution, stride (2, 1, 1), replicate padding: [G, T, H, W, C] → [G, T/2, H, W, C].

    The three time taps are laid side by side as channels, so that a 2-D convolution (which every
    backend has fast) does the work. Padding in time is one copy of the first step, before.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups, steps, _, _, channels = x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 3, channels, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        padded = jnp.pad(x, ((0, 0), (1, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        taps = [padded[:, t : t + steps : 2] for t in range(3)]
        stacked = rearrange(taps, "tap g t y x c -> (g t) y x (tap c)")
        kernel = rearrange(kernel, "tap h w i o -> h w (tap i) o").astype(x.dtype)
        out = jax.lax.conv_general_dilated(stacked, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return rearrange(out, "(g t) y x c -> g t y x c", g=groups) + bias.astype(x.dtype)


class DTS(nn.Module):
    """Dynamic token synthesis. Shapes: [G, 4, H, W, C] → [G, H, W, C]."""

    norm_groups: int = 32
    max_relative: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, stages: list | None = None) -> jax.Array:
        """`stages`, when a list is given, receives what the six encoder parts put out (for parity)."""
        keep = stages.append if stages is not None else lambda _: None
        encoding = self.param("temporal_encoding", nn.initializers.normal(0.02), (x.shape[1], x.shape[-1]))
        x = x + encoding[:, None, None, :].astype(x.dtype)
        keep(x)
        for half in range(2):
            x = SpatialAttention(self.norm_groups, name=f"spatial_{half}")(x)
            keep(x)
            x = TemporalAttention(self.norm_groups, self.max_relative, name=f"temporal_{half}")(x)
            keep(x)
            x = HalveTime(name=f"halve_{half}")(x)
            keep(x)
        return x[:, 0]
