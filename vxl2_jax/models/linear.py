"""A dense layer: its kernel may be quantised, and have a low-rank update (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vxl2_jax.models import quantised

DOWN, UP = "lora_down", "lora_up"
"""Parameter names of the update's factors, [in, rank] and [rank, out]; the LoRA scale is folded into the second."""
_SUMMED = 10_000_000
"""XLA for GPUs computes the product of one row with a matrix of fewer numbers (of the released model: key and value) as
elementwise products, which it may write to memory before it sums them: five times the traffic of a matrix in 8 bits."""


class Linear(nn.Dense):
    """y = x·kernel + bias, plus (x·down)·up if these parameters exist. The kernel may be a `quantised.QuantisedWeight`.

    `init` creates no update; `training.lora.attach` adds one. Keeping the update separate makes its gradient cheaper
    than that of the whole kernel, which can stay frozen.
    """

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        kernel = self.get_variable("params", "kernel") if self.has_variable("params", "kernel") else None
        is_quantised = isinstance(kernel, quantised.QuantisedWeight)
        if kernel is not None and (is_quantised or _is_summed(x, kernel)):
            multiply = quantised.matmul if is_quantised else jnp.matmul
            y = _times_small(multiply, x, kernel) if _is_summed(x, kernel) else multiply(x, kernel)
            if self.use_bias:
                y = y + self.get_variable("params", "bias").astype(y.dtype)
            y = y.astype(x.dtype)
        else:
            y = super().__call__(x)
        if not self.has_variable("params", DOWN):
            return y
        down, up = (self.get_variable("params", name).astype(x.dtype) for name in (DOWN, UP))
        return y + jnp.matmul(jnp.matmul(x, down), up)


def _is_summed(x: Array, kernel: Any) -> bool:
    return math.prod(x.shape[:-1]) == 1 and math.prod(kernel.shape) < _SUMMED


def _times_small(multiply: Callable[[Array, Any], Array], x: Array, kernel: Any) -> Array:
    """One row times a small matrix; on NVIDIA GPUs as two equal rows, which XLA multiplies as matrices."""

    def of_two_rows(x: Array) -> Array:
        both = jnp.broadcast_to(x.reshape(1, -1), (2, x.shape[-1]))
        return multiply(both, kernel)[0].reshape(*x.shape[:-1], -1)

    return jax.lax.platform_dependent(x, cuda=of_two_rows, default=lambda x: multiply(x, kernel))
