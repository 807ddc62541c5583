"""A dense layer: its kernel may be quantised, and have a low-rank update (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vxl2_jax.models import few_rows, quantised

DOWN, UP = "lora_down", "lora_up"
"""Parameter names of the update's factors, [in, rank] and [rank, out]; the LoRA scale is folded into the second."""


class Linear(nn.Dense):
    """y = x·kernel + bias, plus (x·down)·up if these parameters exist. The kernel may be a `quantised.QuantisedWeight`.

    `init` creates no update; `training.lora.attach` adds one. Keeping the update separate makes its gradient cheaper
    than that of the whole kernel, which can stay frozen.
    """

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        kernel = self.get_variable("params", "kernel") if self.has_variable("params", "kernel") else None
        is_quantised = isinstance(kernel, quantised.QuantisedWeight)
        if is_quantised or (kernel is not None and math.prod(x.shape[:-1]) == 1):
            y = few_rows.product(quantised.matmul if is_quantised else jnp.matmul, x, kernel)
            if self.use_bias:
                y = y + self.get_variable("params", "bias").astype(y.dtype)
            y = y.astype(x.dtype)
        else:
            y = super().__call__(x)
        if not self.has_variable("params", DOWN):
            return y
        down, up = (self.get_variable("params", name).astype(x.dtype) for name in (DOWN, UP))
        return y + jnp.matmul(jnp.matmul(x, down), up)
