"""A dense layer with an optional low-rank update (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

DOWN, UP = "lora_down", "lora_up"
"""Parameter names of the update's factors, [in, rank] and [rank, out]; the LoRA scale is folded into the second."""


class Linear(nn.Dense):
    """y = x·kernel + bias, plus (x·down)·up if these parameters exist.

    `init` creates no update; `training.lora.attach` adds one. Keeping the update separate makes its gradient cheaper
    than that of the whole kernel, which can stay frozen.
    """

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        y = super().__call__(x)
        if not self.has_variable("params", DOWN):
            return y
        down, up = (self.get_variable("params", name).astype(x.dtype) for name in (DOWN, UP))
        return y + jnp.matmul(jnp.matmul(x, down), up)
