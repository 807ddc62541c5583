"""SigLIP vision tower: frames → patch features (the residual stream after the last block)."""

from __future__ import annotations

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, UInt8

from pallas_kernels.attention import REFERENCE, Kernel, full_attention
from vxl2_jax.config import VisionConfig
from vxl2_jax.models.linear import Linear


def normalise(frames: UInt8[ArrayLike, "*shape"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*shape"]:
    """Map pixels to [-1, 1] as the original's image processor does: (x / 255 − 0.5) / 0.5 in fp32."""
    return ((jnp.asarray(frames, jnp.float32) / 255.0 - 0.5) / 0.5).astype(dtype)


class SelfAttention(nn.Module):
    """Multi-head attention among the patches of each frame."""

    heads: int
    kernel: Kernel = REFERENCE

    @nn.compact
    def __call__(self, x: Float[Array, "F patches width"]) -> Float[Array, "F patches width"]:
        width = x.shape[-1]
        q, k, v = (
            rearrange(Linear(width, name=name)(x), "f n (h d) -> f n h d", h=self.heads)
            for name in ("query", "key", "value")
        )
        out = full_attention(self.kernel, q, k, v)
        return Linear(width, name="out")(rearrange(out, "f n h d -> f n (h d)"))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block with tanh-approximated GELU. Returns (output, None), as `nn.scan` needs it."""

    config: VisionConfig
    kernel: Kernel = REFERENCE

    @nn.compact
    def __call__(
        self, x: Float[Array, "F patches width"], _: None = None
    ) -> tuple[Float[Array, "F patches width"], None]:
        cfg = self.config

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=cfg.norm_eps, use_fast_variance=False, name=name)

        x = x + SelfAttention(cfg.heads, self.kernel, name="attention")(norm("norm_1")(x))
        hidden = nn.gelu(Linear(cfg.mlp, name="mlp_in")(norm("norm_2")(x)), approximate=True)
        return x + Linear(cfg.width, name="mlp_out")(hidden), None


class SigLIP(nn.Module):
    """The tower without pooling head and final norm, as Video-XL-2 uses it. Takes pixels in [-1, 1].

    Blocks are stacked and scanned. With `remat`, the backward pass keeps only each block's input and recomputes its
    activations.
    """

    config: VisionConfig
    kernel: Kernel = REFERENCE
    remat: bool = False

    @nn.compact
    def __call__(self, pixels: Float[Array, "F image image 3"]) -> Float[Array, "F patches width"]:
        cfg = self.config
        side = cfg.grid * cfg.patch_size
        patches = rearrange(
            pixels[:, :side, :side],
            "f (y py) (x px) c -> f (y x) (py px c)",
            py=cfg.patch_size,
            px=cfg.patch_size,
        )
        x = Linear(cfg.width, name="patch")(patches)
        x = x + self.param("position", nn.initializers.normal(0.02), (cfg.grid**2, cfg.width)).astype(x.dtype)
        block = nn.remat(EncoderBlock, prevent_cse=False) if self.remat else EncoderBlock
        stack = nn.scan(
            block, variable_axes={"params": 0, "intermediates": 0}, split_rngs={"params": True}, length=cfg.layers
        )
        return stack(cfg, self.kernel, name="layers")(x, None)[0]
