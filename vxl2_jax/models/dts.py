"""Dynamic token synthesis (DTS; SiglipAE in the original): merges the feature maps of 4 frames into one.

Maps are [..., y, x, width], with `width` the width of the vision tower.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vxl2_jax.models import quantised
from vxl2_jax.models.linear import Linear


def resize(
    features: Float[Array, "F patches width"], source: int, target: int
) -> Float[Array, "F {target} {target} width"]:
    """Patch features of `source` × `source` patches as maps, resized bilinearly in fp32 without antialiasing."""
    maps = rearrange(features, "f (y x) c -> f y x c", y=source).astype(jnp.float32)
    shape = (maps.shape[0], target, target, maps.shape[3])
    return jax.image.resize(maps, shape, "bilinear", antialias=False).astype(features.dtype)


def regroup(maps: Float[Array, "F y x width"], frames: int = 4) -> Float[Array, "G {frames} y x width"]:
    """Split F = frames · G maps into groups, by the original's reinterpretation of memory.

    The original views the contiguous (frames·G, width, y, x) array as (G, width, frames, y, x). This is not a
    transpose: it mixes frames and channels. The released weights were trained with it.
    """
    raw = rearrange(maps, "(g f) y x c -> g (f c) y x", f=frames)
    return rearrange(raw, "g (c t) y x -> g t y x c", t=frames)


class SpatialAttention(nn.Module):
    """Residual single-head attention over the positions of each time step."""

    norm_groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "G time y x width"]) -> Float[Array, "G time y x width"]:
        width = x.shape[-1]
        h = nn.GroupNorm(self.norm_groups, epsilon=1e-6, use_fast_variance=False, name="norm")(x)
        h = rearrange(h, "g t y x c -> g t (y x) c")
        q, k, v = (Linear(width, name=name)(h) for name in ("query", "key", "value"))
        logits = jnp.einsum("gtnc,gtmc->gtnm", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * width**-0.5, axis=-1).astype(v.dtype)
        out = Linear(width, name="out")(jnp.einsum("gtnm,gtmc->gtnc", weights, v))
        return x + rearrange(out, "g t (y x) c -> g t y x c", y=x.shape[2])


class TemporalAttention(nn.Module):
    """Residual single-head attention over time at each position, with relative-position embeddings."""

    norm_groups: int
    max_relative: int

    @nn.compact
    def __call__(self, x: Float[Array, "G time y x width"]) -> Float[Array, "G time y x width"]:
        steps, width = x.shape[1], x.shape[-1]
        offsets = np.arange(steps)[None, :] - np.arange(steps)[:, None]
        offsets = np.clip(offsets, -self.max_relative, self.max_relative) + self.max_relative

        def relative(name: str) -> Float[Array, "time time width"]:
            table = self.param(name, nn.initializers.normal(0.02), (2 * self.max_relative + 1, width))
            return table.astype(x.dtype)[offsets]

        relative_key, relative_value = relative("relative_key"), relative("relative_value")
        h = rearrange(x, "g t y x c -> (g y x) t c")
        h = nn.GroupNorm(self.norm_groups, epsilon=1e-6, use_fast_variance=False, name="norm")(h)
        q, k, v = jnp.split(Linear(3 * width, name="qkv")(h), 3, axis=-1)
        scale = width**-0.25
        q, k = q * scale, k * scale
        # The original transposes the relative term: q_j·R[j, i] instead of the usual q_i·R[i, j]. Keep it.
        logits = jnp.einsum("pic,pjc->pij", q, k) + jnp.einsum("pjc,jic->pij", q, relative_key)
        weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(v.dtype)
        out = jnp.einsum("pij,pjc->pic", weights, v) + jnp.einsum("pij,ijc->pic", weights, relative_value)
        out = Linear(width, name="out")(out)
        return x + rearrange(out, "(g y x) t c -> g t y x c", y=x.shape[2], x=x.shape[3])


class TemporalDownsample(nn.Module):
    """3×3×3 convolution with stride (2, 1, 1) and replicate padding; in time, one step before the first.

    The three time steps under the kernel are concatenated as channels, so that a 2-D convolution, which is fast on
    every backend, does the work.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "G time y x width"]) -> Float[Array, "G time//2 y x width"]:
        groups, steps, _, _, width = x.shape
        kernel = self.get_variable("params", "kernel") if self.has_variable("params", "kernel") else None
        if isinstance(kernel, quantised.QuantisedWeight):
            values, scale = kernel.values, kernel.scale.reshape(width)
        else:
            values, scale = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 3, width, width)), None
        bias = self.param("bias", nn.initializers.zeros, (width,))
        padded = jnp.pad(x, ((0, 0), (1, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        taps = [padded[:, t : t + steps : 2] for t in range(3)]
        stacked = rearrange(taps, "tap g t y x c -> (g t) y x (tap c)")
        out = jax.lax.conv_general_dilated(
            stacked,
            rearrange(values, "tap h w i o -> h w (tap i) o").astype(x.dtype),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=None if scale is None else jnp.float32,
        )
        out = out if scale is None else (out * scale).astype(x.dtype)
        return rearrange(out, "(g t) y x c -> g t y x c", g=groups) + bias.astype(x.dtype)


class DTS(nn.Module):
    """The DTS encoder."""

    norm_groups: int = 32
    max_relative: int = 64

    @nn.compact
    def __call__(
        self, x: Float[Array, "G 4 y x width"], intermediates: list | None = None
    ) -> Float[Array, "G y x width"]:
        """Append the input with its temporal encoding and each layer's output to `intermediates`, if given."""
        encoding = self.param("temporal_encoding", nn.initializers.normal(0.02), (x.shape[1], x.shape[-1]))
        outputs = [x + encoding[:, None, None, :].astype(x.dtype)]
        for half in range(2):
            outputs.append(SpatialAttention(self.norm_groups, name=f"spatial_{half}")(outputs[-1]))
            outputs.append(TemporalAttention(self.norm_groups, self.max_relative, name=f"temporal_{half}")(outputs[-1]))
            outputs.append(TemporalDownsample(name=f"halve_{half}")(outputs[-1]))
        if intermediates is not None:
            intermediates.extend(outputs)
        return outputs[-1][:, 0]
