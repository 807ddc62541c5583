"""Range attention for NVIDIA GPUs from Ampere on, in Pallas' Triton dialect.

Computes: softmax attention of each item's query rows over its key ranges, with the log-sum-exp (`attend_tiles`).

Tiling: one program per item and key head. It loads its query tile once and loops over the item's keys, stream by
stream, in tiles that start at the item's first key. Tiles between `unmasked_start` and `unmasked_end` run in an unmasked loop,
plain flash attention, which Triton pipelines (asynchronous copies, tensor cores). Tiles at either edge run in a second,
masked loop. Keys and values are read in place from [L, K, S, D] at a traced layer.

Limits: see `refusal`. Caches may hold more than 2³¹ numbers: Pallas uses 64-bit offsets for arrays of more than 4 GiB
only if they are indexed inside the kernel, so caches are passed whole, never as a block or a flattened view.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.tile_schedule import TileSchedule
from pallas_kernels.attention.tile_sizes import TileSizes
from pallas_kernels.kv_cache import KVCache


def _import_triton() -> Any:
    """Pallas Triton, deprecated since jax 0.11; None where jax no longer has it."""
    try:
        return importlib.import_module("jax.experimental.pallas.triton")
    except ImportError:
        return None


triton = _import_triton()

_MASKED = -1e30  # logit of a masked key
_M_INIT = -1e15  # initial running maximum: 2 ** (_MASKED - _M_INIT) is exactly 0, so masked keys never count
_MIN_DOT_SIZE = 16  # smallest dimension of a tensor core product
WIDTH_MULTIPLE = 16
"""Head widths must be multiples of this; others are padded with zeros."""
READS_INT8 = True
"""Whether caches may be in int8, with scales."""


def refusal(*, dtype: DTypeLike, width: int, rows: int, keys: int = _MIN_DOT_SIZE) -> str | None:
    """The reason why this kernel cannot run, in one line with the alternative; None if it can.

    Args:
      dtype: of queries, and of keys and values that are not in int8.
      width: head width D.
      rows: query rows of a tile.
      keys: keys of a tile.
    """
    dtype = jnp.dtype(dtype)
    if triton is None:
        return f"jax {jax.__version__} has no Pallas Triton: use the reference, or a jax release that includes it"
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"the Triton kernel takes bfloat16, float16 or float32, not {dtype.name}: use bfloat16"
    if width < _MIN_DOT_SIZE or width % 8:
        return f"the Triton kernel takes head widths of 16, 24, 32, …, not {width}: pad heads with zeros"
    for name, size in (("rows", rows), ("keys", keys)):
        if size < _MIN_DOT_SIZE or size & (size - 1):
            return (
                f"the Triton kernel takes a power of two of at least {_MIN_DOT_SIZE} {name} per tile, not {size} {name}"
            )
    return None


def _column_parts(width: int, rows: int, warps: int) -> list[tuple[int, int]]:
    """Split the head width into (offset, size) parts whose sizes are powers of two, as Triton requires.

    If the remainder is not a power of two, the last part overlaps the one before, so that no column outside the head is
    read: 72 is 64 + 16, with the second part at 56. Parts are at most 32 wide if a warp holds 32 rows, since its
    registers are then full of accumulators. Otherwise they are no wider than the tile is tall (or 64): for wider parts
    Triton distributes the warps over columns and has to exchange row maxima between them.
    """
    max_size, parts, covered = 32 if rows >= 32 * warps else max(64, rows), [], 0
    while covered < width:
        size = min(max_size, max(_MIN_DOT_SIZE, 1 << (width - covered).bit_length() - 1))
        parts.append((min(covered, width - size), size))
        covered += size
    return parts


def _dot(a: jax.Array, b: jax.Array, contract_b: int) -> jax.Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((1,), (contract_b,)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _widened(x: jax.Array, dtype: Any) -> jax.Array:
    """Keys or values in the dtype of products. The unit that widens integers is slow, so 8 bits become the last of the mantissa of 2²³: exact."""
    if x.dtype != jnp.int8:
        return x.astype(dtype)
    biased = lax.bitcast_convert_type(x, jnp.uint8).astype(jnp.uint32) ^ 0x4B000080
    return (lax.bitcast_convert_type(biased, jnp.float32) - (2.0**23 + 128)).astype(dtype)


def _scaled_exp2(x: jax.Array, scale: float, shift: jax.Array, interpret: bool) -> jax.Array:
    """2 ** (x · scale − shift) in two instructions. Without the inline assembly, the compiler does not fuse
    multiplication and subtraction, and spends three more instructions on subnormal results."""
    if interpret:
        return jnp.exp2(x * scale - shift)
    [result] = triton.elementwise_inline_asm(
        "{ .reg .f32 t; fma.rn.f32 t, $1, $2, $3; ex2.approx.ftz.f32 $0, t; }",
        args=[x, jnp.full_like(x, scale), jnp.broadcast_to(-shift, x.shape)],
        constraints="=f,f,f,f", pack=1, result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )  # fmt: skip
    return result


class _Tile(NamedTuple):
    """Keys or values of a tile: column parts [keys, size], and of caches in int8 the scales [keys]."""

    parts: list[jax.Array]
    scale: jax.Array | None


def _softmax_step(
    carry: tuple, q_parts: list, k_tile: _Tile, v_tile: _Tile, mask: Any, scale: float, interpret: bool
) -> tuple:
    """Fold one key tile into the carry (m_i, l_i, acc), in base 2; `mask` is applied to the logits, None for no mask."""
    m_i, l_i, acc = carry
    dtype = q_parts[0].dtype
    logits: Any = sum(_dot(q, _widened(k, dtype), 1) for q, k in zip(q_parts, k_tile.parts, strict=True))
    if k_tile.scale is not None:
        logits = logits * k_tile.scale[None]
    if mask is not None:
        logits = mask(logits)
    m_new = jnp.maximum(m_i, jnp.max(logits, axis=1) * scale)
    weights = _scaled_exp2(logits, scale, m_new[:, None], interpret)
    alpha = _scaled_exp2(m_i, 1.0, m_new, interpret)
    weighted = (weights if v_tile.scale is None else weights * v_tile.scale[None]).astype(dtype)
    products = (_dot(weighted, _widened(v, dtype), 0) for v in v_tile.parts)
    acc = tuple(a * alpha[:, None] + product for a, product in zip(acc, products, strict=True))
    return m_new, l_i * alpha + jnp.sum(weights, axis=1), acc


def _kernel(
    layer, q_tile, item_start, item_end, unmasked_start, unmasked_end, row_start, row_end, q, *refs,
    stream_ids: tuple[int, ...], scale: float, tiles: TileSizes, interpret: bool,
) -> None:  # fmt: skip
    """One item for one key head. Refs of the schedule's tables are whole, of `q` and the caches too; `scale` has log₂ e
    multiplied in, so that all exponentials are base 2."""
    streams, (out, lse) = _as_streams(refs[:-2], len(stream_ids)), refs[-2:]
    item, head = pl.program_id(0), pl.program_id(1)
    layer, q_tile, keys = layer[0], q_tile[item], tiles.keys
    rows, width = q.shape[2:]
    parts = _column_parts(width, rows, tiles.warps)

    q_parts, covered = [], 0
    for offset, size in parts:
        q_part = triton.load(q.at[head, q_tile, :, pl.ds(offset, size)])
        if offset < covered:  # zero the columns that the part before already has
            column = lax.broadcasted_iota(jnp.int32, q_part.shape, 1)
            q_part = jnp.where(column < covered - offset, 0, q_part)
        q_parts.append(q_part)
        covered = offset + size

    def load(part, start: jax.Array, end: jax.Array | None, *columns: Any) -> jax.Array:
        ref = part.at[layer, head, pl.ds(start, keys), *columns]
        shape = (keys, *(column.size for column in columns))
        valid = None if end is None else start + lax.broadcasted_iota(jnp.int32, shape, 0) < end
        return triton.load(ref, mask=valid, other=None if end is None else 0)

    def load_tile(cache, scale, start: jax.Array, end: jax.Array | None = None) -> _Tile:
        """The key tile at `start`; rows from `end` on are zeros."""
        columns = [load(cache, start, end, pl.ds(offset, size)) for offset, size in parts]
        return _Tile(columns, None if scale is None else load(scale, start, end))

    def attend_stream(stream: int, cache: KVCache, carry: tuple) -> tuple:
        k_start, k_end = item_start[stream, item], item_end[stream, item]
        left_edge = pl.cdiv(unmasked_start[stream, item] - k_start, keys)  # tiles before the first full one
        full = jnp.maximum((unmasked_end[stream, item] - k_start) // keys - left_edge, 0)

        def full_step(tile, carry):
            start = k_start + tile * keys
            k_tile, v_tile = load_tile(cache.k, cache.k_scale, start), load_tile(cache.v, cache.v_scale, start)
            return _softmax_step(carry, q_parts, k_tile, v_tile, None, scale, interpret)

        def edge_step(tile, carry):
            start = k_start + jnp.where(tile < left_edge, tile, tile + full) * keys

            def mask(logits):
                key = start + lax.broadcasted_iota(jnp.int32, logits.shape, 1)
                return jnp.where((key >= row_k_start[:, None]) & (key < row_k_end[:, None]), logits, _MASKED)

            k_tile = load_tile(cache.k, cache.k_scale, start, k_end)
            v_tile = load_tile(cache.v, cache.v_scale, start, k_end)
            return _softmax_step(carry, q_parts, k_tile, v_tile, mask, scale, interpret)

        carry = lax.fori_loop(left_edge, left_edge + full, full_step, carry)
        row_k_start, row_k_end = row_start[stream, q_tile, :], jnp.minimum(row_end[stream, q_tile, :], k_end)
        return lax.fori_loop(0, pl.cdiv(k_end - k_start, keys) - full, edge_step, carry)

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.float32)

    carry = jnp.full((rows,), _M_INIT, jnp.float32), zeros(rows), tuple(zeros(rows, size) for _, size in parts)
    for stream, cache in zip(stream_ids, streams, strict=True):
        carry = attend_stream(stream, cache, carry)
    m_i, l_i, acc = carry
    sees_any = l_i > 0
    l_i = jnp.where(sees_any, l_i, 1.0)
    for (offset, size), acc_part in zip(parts, acc, strict=True):
        triton.store(out.at[:, pl.ds(offset, size)], (acc_part / l_i[:, None]).astype(out.dtype))
    lse[...] = jnp.where(sees_any, m_i * math.log(2) + jnp.log(l_i), -jnp.inf)


def _as_streams(refs: Sequence[Any], count: int) -> list[KVCache]:
    """References to the arrays of `count` caches, one after another; scales are [L, K, S]."""
    size = len(refs) // max(count, 1)
    return [KVCache(*refs[size * number : size * (number + 1)]) for number in range(count)]


def attend_tiles(
    q: Float[Array, "K Q rows D"],
    streams: Sequence[KVCache],
    layer: Int[ArrayLike, ""],
    schedule: TileSchedule,
    *,
    scale: float,
    tiles: TileSizes,
    out_dtype: DTypeLike,
    interpret: bool = False,
) -> tuple[Float[Array, "K T rows D"], Float[Array, "K T rows"]]:
    """Attention of the T items of a schedule in one layer of the streams; sums are fp32.

    Args:
      q: query tiles (rotated, unscaled), `rows` as in `tiles`; bfloat16, float16 or float32 (full fp32 products).
      streams: caches [L, K, S, D] in q's dtype or in int8.
      layer: index into L; may be traced.
      schedule: what each item reads.
      scale: of the logits, positive.
      tiles: tile sizes; all fields are used.
      out_dtype: dtype of the output.
      interpret: run in Pallas' interpreter on a CPU.

    Returns:
      Output in `out_dtype` and natural log-sum-exp in fp32, over the keys of each item. A row that sees no key of its
      item gets zeros and −inf; a row that sees no key in any item may get any finite value.

    Raises:
      ValueError: with the text of `refusal`, or if tiles or scale do not fit.
    """
    kv_heads, _, rows, width = q.shape
    if reason := refusal(dtype=q.dtype, width=width, rows=rows, keys=tiles.keys):
        raise ValueError(reason)
    if rows != tiles.rows or scale <= 0:
        raise ValueError(f"q must have tiles of {tiles.rows} rows, not {rows}, and scale must be positive, not {scale}")
    items = schedule.q_tile.shape[0]
    stream_ids = tuple(index for index, stream in enumerate(streams) if stream.k.shape[2])
    kernel = functools.partial(
        _kernel, stream_ids=stream_ids, scale=scale * math.log2(math.e), tiles=tiles, interpret=interpret
    )
    return pl.pallas_call(
        kernel,
        grid=(items, kv_heads),  # neighboring items share keys, so most reads hit the L2 cache
        out_specs=(
            pl.BlockSpec((None, None, rows, width), lambda item, head: (head, item, 0, 0)),
            pl.BlockSpec((None, None, rows), lambda item, head: (head, item, 0)),
        ),
        out_shape=(
            jax.ShapeDtypeStruct((kv_heads, items, rows, width), out_dtype),
            jax.ShapeDtypeStruct((kv_heads, items, rows), jnp.float32),
        ),
        compiler_params=triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=interpret,
        name="range_attention_ampere",
    )(
        jnp.asarray(layer, jnp.int32).reshape(1), schedule.q_tile, schedule.item_start, schedule.item_end,
        schedule.unmasked_start, schedule.unmasked_end, schedule.row_start, schedule.row_end, q,
        *(part if number < 2 else part[..., 0]
          for index in stream_ids for number, part in enumerate(jax.tree.leaves(streams[index]))),
    )  # fmt: skip
