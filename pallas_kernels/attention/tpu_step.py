"""One step of the TPU's attention kernel: the softmax of a key tile's logits and their product with its values.

Rows are taken in blocks. The products of a block's queries with the keys are issued before the softmax of the block before it,
so that the matrix units work while the vector units do. The maximum is of logits that are not scaled yet: scale and change
of base are one factor of the exponent, which the compiler folds into the one that its exponential needs anyway. Logits of
caches in int8 are multiplied by the keys' scales in any case, so there those hold the factor.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.tpu_layout import LANES

MASKED = -1e30
"""Logit of a masked key."""
M_INIT = -1e15
"""Initial running maximum: 2 ** (MASKED − M_INIT) is exactly 0, so masked keys never count."""
_BLOCK_ROWS = 512  # chosen by cycles: with fewer rows, keys are loaded into the matrix units too often


class Running(NamedTuple):
    """References to what a softmax keeps from tile to tile, fp32: m_i, l_i [rows, LANES], acc [rows, D]. Sums are kept per
    lane: lanes are added up once per item, not once per tile."""

    m_i: Any
    l_i: Any
    acc: Any

    def reset(self) -> None:
        """Before the first tile."""
        self.m_i[...] = jnp.full_like(self.m_i, M_INIT)
        self.l_i[...] = jnp.zeros_like(self.l_i)
        self.acc[...] = jnp.zeros_like(self.acc)

    def results(self, factor: float) -> tuple[jax.Array, jax.Array]:
        """Output [rows, D] and natural log-sum-exp [rows, LANES], the same in all lanes: zeros and −inf where no key is seen."""
        l_i = jnp.sum(self.l_i[...], axis=1, keepdims=True)
        sees_any = l_i > 0
        l_safe = jnp.where(sees_any, l_i, 1.0)
        natural = (self.m_i[...] * factor + jnp.log2(l_safe)) * math.log(2)
        return self.acc[...] / l_safe, jnp.where(sees_any, natural, -jnp.inf)


class Tile(NamedTuple):
    """Keys and values [keys, D] of a tile in the queries' dtype, and of caches in int8 the scales [1, keys], those of keys with
    the factor of the exponent in them."""

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None


def softmax_step(q: Any, tile: Tile, running: Running, factor: float, mask: jax.Array | None = None) -> None:
    """Fold a key tile into the running softmax.

    q: reference to queries [rows, D]. factor: of a difference of logits, to the exponent of 2. mask: [rows, keys], the keys that
    a row sees; None: all.
    """
    rows = q.shape[0]
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    product = functools.partial(lax.dot_general, precision=precision, preferred_element_type=jnp.float32)
    lanes = [slice(first, first + LANES) for first in range(0, tile.k.shape[0], LANES)]

    def logits_of(block: slice) -> jax.Array:
        logits = product(q[block], tile.k, (((1,), (1,)), ((), ())))  # [block, keys], not scaled
        if tile.k_scale is not None:
            logits = logits * tile.k_scale
        return logits

    def fold(block: slice, logits: jax.Array) -> None:
        if mask is not None:
            logits = jnp.where(mask[block], logits, MASKED)
        m_i = running.m_i[block]
        m_new = jnp.maximum(m_i, jnp.max(logits, axis=1, keepdims=True))
        alpha = jnp.exp2((m_i - m_new) * factor)  # [block, LANES]
        weights = [jnp.exp2((logits[:, some] - m_new) * factor) for some in lanes]
        running.m_i[block] = m_new
        running.l_i[block] = running.l_i[block] * alpha + functools.reduce(jnp.add, weights)
        if tile.v_scale is not None:
            weights = [weight * tile.v_scale[:, some] for weight, some in zip(weights, lanes, strict=True)]
        rounded = jnp.concatenate([weight.astype(tile.v.dtype) for weight in weights], axis=1)
        values = product(rounded, tile.v, (((1,), (0,)), ((), ())))  # [block, D]
        running.acc[block] = running.acc[block] * alpha[:, : values.shape[1]] + values

    size = _BLOCK_ROWS if rows % _BLOCK_ROWS == 0 else rows
    blocks = [slice(first, first + size) for first in range(0, rows, size)]
    logits = logits_of(blocks[0])
    for block, following in zip(blocks, blocks[1:], strict=False):
        next_logits = logits_of(following)
        fold(block, logits)
        logits = next_logits
    fold(blocks[-1], logits)
