"""The gradient of range attention for TPUs, in Pallas' Mosaic.

Computes: gradients of queries, keys and values of one stream, from the forward pass's log-sum-exp (flash attention, arXiv
2205.14135, algorithm 4). Logits are recomputed tile by tile, so memory stays linear in length.

Tiling: a pair is a tile of query rows and a tile of keys of which some row sees a key. One kernel walks the pairs by key tile
and sums the gradients of its keys and values; another walks them by row tile and sums those of its queries. Both keep a sum
in VMEM until its last pair, and all matrices have keys as rows and query rows as lanes, so that what belongs to a row is a row
of lanes. The grid has as many steps as there are pairs, a number that is known when the program runs.

Limits: see `refusal`. Scalar memory (1 MiB) holds the pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int

from pallas_kernels.attention.tpu_layout import LANES

KEYS = ROWS = 512
"""Keys and rows of a tile, at most."""
_MAX_PAIRS = 100_000
"""Pairs whose tables fit into scalar memory."""


def refusal(*, dtype: DTypeLike, width: int, rows: int, slots: int) -> str | None:
    """The reason why this kernel cannot run, in one line; None if it can.

    Args:
      dtype: of queries, keys and values.
      width: head width D.
      rows: packed query rows of a key head.
      slots: keys of the stream.
    """
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"the TPU kernel of the gradient takes bfloat16 or float32, not {dtype.name}"
    if width > LANES:
        return f"the TPU kernel of the gradient takes head widths up to {LANES}, not {width}"
    if (pairs := -(-rows // ROWS) * -(-slots // KEYS)) > _MAX_PAIRS:
        return f"the TPU kernel of the gradient takes {_MAX_PAIRS:,} pairs of tiles, not {pairs:,}"
    return None


def gradient_rows(rows: int) -> int:
    """Rows of a tile, for so many packed rows of a key head."""
    return min(ROWS, -(-rows // LANES) * LANES)


class _Pairs(NamedTuple):
    """int32 tables: the tile of rows and of keys of each pair, and how many pairs there are. The rest is padding."""

    row_tile: jax.Array
    key_tile: jax.Array
    count: jax.Array


def _pairs(seen: Bool[Array, "Q T"], by_key: bool) -> _Pairs:
    """The pairs of tiles of which some row sees some key, in the order of one of both. Every tile of that one has a pair, so that
    its sum is written."""
    table = seen.T if by_key else seen
    table = table.at[:, 0].set(True)
    order = jnp.argsort(~table.reshape(-1), stable=True).astype(jnp.int32)
    own, other = order // table.shape[1], order % table.shape[1]
    return _Pairs(*((other, own) if by_key else (own, other)), count=table.sum(dtype=jnp.int32))


def _weights(
    key_tile: Any, q: Any, d_out: Any, bounds: Any, of_rows: Any, k: Any, v: Any, scale: float
) -> tuple[jax.Array, jax.Array]:
    """The weights of a pair, and the gradients of its logits: fp32 [keys, rows].

    bounds [1, 2, rows]: first key of each row, and how many it sees; of_rows [1, 1, 2, rows]: log-sum-exp and delta.
    """
    product = functools.partial(_product, contract=(1, 1))
    keys = k.shape[1]
    key = key_tile * keys + lax.broadcasted_iota(jnp.int32, (keys, 1), 0)
    # One unsigned comparison checks both ends of the range.
    visible = (key - bounds[0, 0:1]).astype(jnp.uint32) < bounds[0, 1:2].astype(jnp.uint32)
    weights = jnp.exp(product(k[0], q[0, 0]) * scale - of_rows[0, 0, 0:1])
    weights = jnp.where(visible, weights, 0.0)
    return weights, weights * (product(v[0], d_out[0, 0]) - of_rows[0, 0, 1:2]) * scale


def _product(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """The fp32 product of two matrices over one axis of each."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _is_first(tile: Any) -> Any:
    """Whether this pair is the first one of its tile."""
    step = pl.program_id(1)
    return (step == 0) | (tile[step] != tile[jnp.maximum(step - 1, 0)])


def _keys_kernel(_, key_tile, q, d_out, bounds, of_rows, k, v, dk, dv, *, scale: float) -> None:
    """Add the gradients of keys and values of a pair."""

    @pl.when(_is_first(key_tile))
    def _() -> None:
        dk[...] = jnp.zeros_like(dk)
        dv[...] = jnp.zeros_like(dv)

    weights, d_logits = _weights(key_tile[pl.program_id(1)], q, d_out, bounds, of_rows, k, v, scale)
    dk[0] += _product(d_logits.astype(k.dtype), q[0, 0], (1, 0))
    dv[0] += _product(weights.astype(v.dtype), d_out[0, 0], (1, 0))


def _queries_kernel(row_tile, key_tile, q, d_out, bounds, of_rows, k, v, dq, *, scale: float) -> None:
    """Add the gradient of the queries of a pair."""

    @pl.when(_is_first(row_tile))
    def _() -> None:
        dq[...] = jnp.zeros_like(dq)

    _, d_logits = _weights(key_tile[pl.program_id(1)], q, d_out, bounds, of_rows, k, v, scale)
    dq[0, 0] += _product(d_logits.astype(k.dtype), k[0], (0, 0))


def attend_gradients(
    q: Float[Array, "K Q rows D"],
    d_out: Float[Array, "K Q rows D"],
    lse: Float32[Array, "K Q rows"],
    delta: Float32[Array, "K Q rows"],
    k: Float[Array, "K S D"],
    v: Float[Array, "K S D"],
    row_start: Int[Array, "Q rows"],
    row_end: Int[Array, "Q rows"],
    *,
    scale: float,
    interpret: Any = False,
) -> tuple[Float32[Array, "K Q rows D"], Float32[Array, "K S D"], Float32[Array, "K S D"]]:
    """Gradients of queries, keys and values of one stream.

    Args:
      q, d_out: rotated, unscaled queries, and the gradient of the output, in tiles of rows (a multiple of 128 rows).
      lse: natural log-sum-exp over all streams; +inf for rows that see nothing.
      delta: of each row, the dot product of the output and its gradient.
      k, v: of this stream, in q's dtype.
      row_start, row_end: the keys row_start ≤ index < row_end that each row sees.
      scale: of the logits.
      interpret: True or pltpu.InterpretParams to run in an interpreter on a CPU.

    Returns:
      The gradients in fp32.
    """
    kv_heads, row_tiles, rows, width = q.shape
    slots = k.shape[1]
    keys = min(KEYS, -(-slots // LANES) * LANES)
    key_tiles = -(-slots // keys)
    k, v = (jnp.pad(a, ((0, 0), (0, key_tiles * keys - slots), (0, 0))) for a in (k, v))
    row_start, row_end = (jnp.asarray(a, jnp.int32) for a in (row_start, row_end))
    length = jnp.maximum(row_end - row_start, 0)
    first = jnp.min(jnp.where(length > 0, row_start, slots), axis=1)[:, None]
    last = jnp.max(jnp.where(length > 0, row_end, 0), axis=1)[:, None]
    begin = jnp.arange(key_tiles) * keys
    seen = (first < begin + keys) & (last > begin)
    bounds, of_rows = jnp.stack([row_start, length], axis=1), jnp.stack([lse, delta], axis=2)

    def of_row_tile(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, *shape), lambda head, step, row_tile, _: (head, row_tile[step], 0, 0))

    of_key_tile = pl.BlockSpec((1, keys, width), lambda head, step, _, key_tile: (head, key_tile[step], 0))
    of_bounds = pl.BlockSpec((1, 2, rows), lambda head, step, row_tile, _: (row_tile[step], 0, 0))

    def call(kernel: Callable[..., None], pairs: _Pairs, out_shape: Any, out_specs: Any, name: str) -> Any:
        return pl.pallas_call(
            functools.partial(kernel, scale=scale),
            out_shape=out_shape,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=(kv_heads, pairs.count),
                in_specs=[
                    *[of_row_tile(rows, width)] * 2,
                    of_bounds,
                    of_row_tile(2, rows),
                    *[of_key_tile] * 2,
                ],
                out_specs=out_specs,
            ),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
            interpret=interpret,
            name=name,
        )(pairs.row_tile, pairs.key_tile, q, d_out, bounds, of_rows, k, v)

    sums = jax.ShapeDtypeStruct(k.shape, jnp.float32)
    dk, dv = call(
        _keys_kernel, _pairs(seen, by_key=True), (sums, sums), (of_key_tile, of_key_tile), "attend_gradients_kv"
    )
    dq = call(
        _queries_kernel,
        _pairs(seen, by_key=False),
        jax.ShapeDtypeStruct(q.shape, jnp.float32),
        of_row_tile(rows, width),
        "attend_gradients_q",
    )
    return dq, dk[:, :slots], dv[:, :slots]
