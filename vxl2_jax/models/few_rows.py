"""The product of a few rows and a matrix, which is what a decoding step consists of: one row for each question."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Float32

from vxl2_jax.models import quantised

_SMALL = 10_000_000
"""XLA for GPUs treats a matrix of fewer numbers like XLA for TPUs (see `product`); of the released model, key and value."""
_SUMMED = 8
"""Rows up to which `_by_sums` reads no more of a weight than its wide copy would take."""
_PARTS = 8
"""Parts into which the inputs of `_by_sums` are divided, if they can be."""
_GROUPED = 128
"""Rows up to which `_by_groups` takes fewer cycles than a wide copy of the weight: by XLA's estimate for v5e, about 200."""


def product(multiply: Callable[[Any, Any], Array], x: Float[Array, "*N in"], matrix: Any) -> Float[Array, "*N out"]:
    """`multiply(x, matrix)`, and if `x` has few rows, in a form that XLA computes well on the device at hand.

    XLA multiplies a row and a matrix number by number and sums up. On TPUs that happens on the vector unit, where by XLA's own
    estimate a v5e takes 3 to 14 times as long as for two rows, and longer than for reading the matrix. On GPUs it may write out
    the products first: five times the traffic of a matrix in 8 bits. So there the row is given twice.

    A weight in 4 bits is written out wide first, in every step. On GPUs older than Ampere one in 8 bits is, too (such a card is
    known by float16, in which it runs the language model). On GPUs a pass over the integers computes two rows at a time instead
    (`_by_sums`), on TPUs a product per group of inputs (`_by_groups`).

    Args:
      multiply: (rows [..., in], matrix) → [..., out].
      x: activations.
      matrix: [in, out], an array or a `quantised.QuantisedWeight`.
    """
    rows, is_summed, is_grouped = math.prod(x.shape[:-1]), False, False
    if isinstance(matrix, quantised.QuantisedWeight) and not matrix.activations:
        is_int4 = matrix.values.dtype == jnp.int4
        is_summed = rows <= _SUMMED and (is_int4 or x.dtype == jnp.float16)
        is_grouped = rows <= _GROUPED and matrix.group is not None and x.shape[-1] % matrix.group == 0
    if rows != 1 and not (is_summed or is_grouped):
        return multiply(x, matrix)
    out_dtype = jax.eval_shape(multiply, x, matrix).dtype

    def direct(x: Array) -> Array:
        return multiply(x, matrix)

    def summed(x: Array) -> Array:
        return _by_sums(x, matrix).astype(out_dtype)

    def grouped(x: Array) -> Array:
        return _by_groups(x, matrix).astype(out_dtype)

    def twice(way: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def both(x: Array) -> Array:
            return way(jnp.broadcast_to(x.reshape(1, -1), (2, x.shape[-1])))[0].reshape(*x.shape[:-1], -1)

        return both if rows == 1 else way

    on_tpu = twice(grouped if is_grouped else direct)
    is_small = math.prod(matrix.shape) < _SMALL
    on_gpu = summed if is_summed else twice(direct) if is_small else direct
    return jax.lax.platform_dependent(x, tpu=on_tpu, cuda=on_gpu, default=direct)


def _by_sums(x: Float[Array, "*N in"], weight: quantised.QuantisedWeight) -> Float32[Array, "*N out"]:
    """x · weight as sums over the inputs, for two rows at a time: XLA for GPUs makes of each pair one pass over the integers.

    It writes out the products of three rows or more, so those are not summed together.
    """
    grouped = weight.group is not None
    wide = quantised.dequantise(weight, jnp.float32) if grouped else weight.values.astype(jnp.float32)
    parts = math.gcd(x.shape[-1] // (weight.group or 1), _PARTS)
    wide = rearrange(wide, "(p k) o -> p k o", p=parts)
    flat = rearrange(x.reshape(-1, x.shape[-1]).astype(jnp.float32), "n (p k) -> n p k 1", p=parts)
    sums: list[Array] = []
    for first in range(0, len(flat), 2):
        terms = tuple(row * wide for row in flat[first : first + 2])
        sums += jax.lax.reduce(terms, (jnp.float32(0),) * len(terms), partial(jax.tree.map, jnp.add), (1,))
    # Or XLA makes one sum of both, and of short ones it writes out the products.
    out = jax.lax.optimization_barrier(jnp.stack(sums)).sum(axis=1).reshape(*x.shape[:-1], -1)
    return out if grouped else out * weight.scale[0]


def _by_groups(x: Float[Array, "*N in"], weight: quantised.QuantisedWeight) -> Float32[Array, "*N out"]:
    """x · weight as one product for each group of inputs that share a scale, scaled and summed.

    XLA for TPUs reads the integers of such a product in place. A group has 64 inputs, so half of a matrix unit is idle.
    """
    rows = rearrange(x, "... (g k) -> g (...) k", k=weight.group)
    values = rearrange(weight.values, "(g k) o -> g k o", k=weight.group).astype(x.dtype)
    products = jnp.einsum("gnk,gko->gno", rows, values, preferred_element_type=jnp.float32)
    return (products * weight.scale[:, None]).sum(axis=0).reshape(*x.shape[:-1], -1)
