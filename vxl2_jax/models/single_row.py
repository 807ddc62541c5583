"""The product of a single row and a matrix, which is what a decoding step of one question consists of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_SMALL = 10_000_000
"""XLA for GPUs treats a matrix of fewer numbers like XLA for TPUs (see `product`); of the released model, key and value."""


def product(multiply: Callable[[Any, Any], Array], x: Float[Array, "*N in"], matrix: Any) -> Float[Array, "*N out"]:
    """`multiply(x, matrix)`, and if `x` has one row, in a form that accelerators compute on their matrix units.

    XLA multiplies a row and a matrix number by number and sums up. On TPUs that happens on the vector unit, where by XLA's own
    estimate a v5e takes 3 to 14 times as long as for two rows, and longer than for reading the matrix. On GPUs it may write out
    the products first: five times the traffic of a matrix in 8 bits. So there the row is given twice.

    Args:
      multiply: (rows [..., in], matrix) → [..., out].
      x: activations.
      matrix: [in, out], an array or a `quantised.QuantisedWeight`.
    """
    if math.prod(x.shape[:-1]) != 1:
        return multiply(x, matrix)

    def once(x: Array) -> Array:
        return multiply(x, matrix)

    def twice(x: Array) -> Array:
        both = jnp.broadcast_to(x.reshape(1, -1), (2, x.shape[-1]))
        return multiply(both, matrix)[0].reshape(*x.shape[:-1], -1)

    is_small = math.prod(matrix.shape) < _SMALL
    return jax.lax.platform_dependent(x, tpu=twice, cuda=twice if is_small else once, default=once)
