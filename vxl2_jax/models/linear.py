"""A dense layer that adds a low-rank update where its parameters hold one (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

DOWN, UP = "lora_down", "lora_up"
"""Names of the update's factors beside "kernel": [in, rank] and [rank, out], the latter with its scale in it."""


class Linear(nn.Dense):
    """y = x·kernel + bias, plus (x·down)·up if there are such parameters. Shapes: [..., in] → [..., features].

    Parameters made by `init` have no update; `training.lora.attach` puts one there. A small product of its own costs
    less than a gradient of the whole kernel, and the kernel may stay as it is.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        if not self.has_variable("params", DOWN):
            return y
        down, up = (self.get_variable("params", name).astype(x.dtype) for name in (DOWN, UP))
        return y + jnp.matmul(jnp.matmul(x, down), up)
