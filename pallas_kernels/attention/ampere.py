"""Range attention for NVIDIA GPUs from Ampere on, in Pallas' Triton dialect.

One program takes one item and one key head: it loads its tile of queries once and walks the item's keys,
stream after stream, in tiles that start at the item's first key. Tiles that every row sees are one loop,
plain flash attention, which Triton pipelines (asynchronous copies, tensor cores); tiles at either edge are
a second loop, with compares. Keys and values are read where they lie, [L, K, S, D], at a traced layer.

Caches hold more than 2³¹ numbers. Pallas computes offsets with 64 bits into arrays of more than 4 GiB, from
the indices on, so keys and values are passed whole and indexed here, never as a block or a flattened view.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.reference import KVCache
from pallas_kernels.attention.tile_schedule import TileSchedule
from pallas_kernels.attention.tile_sizes import TileSizes

try:  # Deprecated since jax 0.11. All that is Triton's own is reached by this name.
    from jax.experimental.pallas import triton
except ImportError:
    triton = None

_UNSEEN = -1e30  # the logit of a key that a row does not see
_LOWEST = -1e15  # where the running maximum starts: 2 ** (_UNSEEN - maximum) is exactly 0 from the first tile on
_NARROWEST = 16  # the least extent of a tensor core product


def refusal(*, dtype: jnp.dtype, width: int, rows: int, keys: int = _NARROWEST) -> str | None:
    """Why this kernel cannot run, in one line with what to do instead; None where it can."""
    dtype = jnp.dtype(dtype)
    if triton is None:
        return f"jax {jax.__version__} has no Pallas Triton: use the reference, or a jax that still has it"
    if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"the Triton kernel takes bfloat16, float16 or float32, not {dtype.name}: use bfloat16"
    if width < _NARROWEST or width % 8:
        return f"the Triton kernel takes head widths of 16, 24, 32, …, not {width}: pad heads with zeros"
    for name, size in (("rows", rows), ("keys", keys)):
        if size < _NARROWEST or size & (size - 1):
            return f"tiles of {size} {name} are not a power of two of at least {_NARROWEST}: choose other tiles"
    return None


def _parts(width: int, rows: int, warps: int) -> list[tuple[int, int]]:
    """The head width as (offset, size) of parts, each a power of two as Triton wants them.

    Where no power of two is left, the last part lies partly over the one before, so that nothing outside the
    head is touched: 72 is 64 + 16, which begins at 56. Parts are narrow where a warp holds 32 rows, since its
    registers are then full of results, and no wider than the tile is tall, since Triton would deal the warps
    over columns and exchange every row's maximum between them.
    """
    widest, parts, done = 32 if rows >= 32 * warps else max(64, rows), [], 0
    while done < width:
        size = min(widest, max(_NARROWEST, 1 << (width - done).bit_length() - 1))
        parts.append((min(done, width - size), size))
        done += size
    return parts


def _dot(a: jax.Array, b: jax.Array, contract_b: int) -> jax.Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((1,), (contract_b,)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _exp2(x: jax.Array, scale: float, shift: jax.Array, interpret: bool) -> jax.Array:
    """2 ** (x · scale − shift) in two instructions: left to itself, the compiler does not fuse product and
    difference, and spends three more on subnormal results."""
    if interpret:
        return jnp.exp2(x * scale - shift)
    [result] = triton.elementwise_inline_asm(
        "{ .reg .f32 t; fma.rn.f32 t, $1, $2, $3; ex2.approx.ftz.f32 $0, t; }",
        args=[x, jnp.full_like(x, scale), jnp.broadcast_to(-shift, x.shape)],
        constraints="=f,f,f,f", pack=1, result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )  # fmt: skip
    return result


def _update(carry, queries, k, v, see, scale, interpret):
    """One tile of keys into the running (maximum, total, results); `see` hides logits where rows differ."""
    peak, total, results = carry
    logits = see(sum(_dot(q, part, 1) for q, part in zip(queries, k, strict=True)))
    new_peak = jnp.maximum(peak, jnp.max(logits, axis=1) * scale)
    weights = _exp2(logits, scale, new_peak[:, None], interpret)
    shrink = _exp2(peak, 1.0, new_peak, interpret)
    mixed = (_dot(weights.astype(part.dtype), part, 0) for part in v)
    results = tuple(old * shrink[:, None] + new for old, new in zip(results, mixed, strict=True))
    return new_peak, total * shrink + jnp.sum(weights, axis=1), results


def _kernel(
    layer, q_tile, item_start, item_end, full_start, full_end, row_start, row_end, q, *refs, numbers, scale, tiles, interpret
):  # fmt: skip
    caches, (out, lse) = refs[:-2], refs[-2:]
    item, head = pl.program_id(0), pl.program_id(1)
    layer, q_tile, keys = layer[0], q_tile[item], tiles.keys
    rows, width = q.shape[2:]
    parts = _parts(width, rows, tiles.warps)

    queries, done = [], 0
    for offset, size in parts:
        part = triton.load(q.at[head, q_tile, :, pl.ds(offset, size)])
        if offset < done:  # these columns count in the part before
            part = jnp.where(lax.broadcasted_iota(jnp.int32, part.shape, 1) < done - offset, 0, part)
        queries.append(part)
        done = offset + size

    def load(cache, start, item_end=None):
        """Parts of the tile of keys from `start` on; with a `item_end`, zeros from there on."""
        tile = []
        for offset, size in parts:
            where = cache.at[layer, head, pl.ds(start, keys), pl.ds(offset, size)]
            inside = None if item_end is None else start + lax.broadcasted_iota(jnp.int32, (keys, size), 0) < item_end
            tile.append(triton.load(where, mask=inside, other=None if item_end is None else 0))
        return tile

    def attend_stream(number, k, v, carry):
        begin, end = item_start[number, item], item_end[number, item]
        left = pl.cdiv(full_start[number, item] - begin, keys)
        clear = jnp.maximum((full_end[number, item] - begin) // keys - left, 0)

        def clear_tile(tile, carry):
            start = begin + tile * keys
            return _update(carry, queries, load(k, start), load(v, start), lambda logits: logits, scale, interpret)

        def edge_tile(tile, carry):
            start = begin + jnp.where(tile < left, tile, tile + clear) * keys

            def see(logits):
                key = start + lax.broadcasted_iota(jnp.int32, logits.shape, 1)
                return jnp.where((key >= low[:, None]) & (key < high[:, None]), logits, _UNSEEN)

            return _update(carry, queries, load(k, start, end), load(v, start, end), see, scale, interpret)

        carry = lax.fori_loop(left, left + clear, clear_tile, carry)
        low, high = row_start[number, q_tile, :], jnp.minimum(row_end[number, q_tile, :], end)
        return lax.fori_loop(0, pl.cdiv(end - begin, keys) - clear, edge_tile, carry)

    def zeros(*shape):
        return jnp.zeros(shape, jnp.float32)

    carry = jnp.full((rows,), _LOWEST, jnp.float32), zeros(rows), tuple(zeros(rows, size) for _, size in parts)
    for number, k, v in zip(numbers, caches[::2], caches[1::2], strict=True):
        carry = attend_stream(number, k, v, carry)
    peak, total, results = carry
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    for (offset, size), result in zip(parts, results, strict=True):
        triton.store(out.at[:, pl.ds(offset, size)], (result / total[:, None]).astype(out.dtype))
    lse[...] = jnp.where(seen, peak * math.log(2) + jnp.log(total), -jnp.inf)


def attend_tiles(
    q: jax.Array,
    streams: Sequence[KVCache],
    layer: jax.Array | int,
    work: TileSchedule,
    *,
    scale: float,
    tiles: TileSizes,
    out_dtype: jnp.dtype,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Attention of the T items of `work` in one layer of the streams.

    Shapes: q [K, Q, rows, D] (rotated, unscaled, rows as in `tiles`); streams of [L, K, S, D] in q's dtype,
    bfloat16, float16 or float32 (whose products are then full float32); layer an int32 scalar, may be traced;
    `scale` positive. Returns out [K, T, rows, D] in `out_dtype` and the natural log-sum-exp fp32 [K, T, rows]
    over the keys of the item: zeros and −inf where a row sees no key of its item (rows that see nothing in
    any stream may get anything finite). Sums are fp32. `interpret` runs on the CPU, for tests.

    Raises ValueError where `refusal` has a reason, and for tiles or a scale that do not fit.
    """
    kv_heads, _, rows, width = q.shape
    if why := refusal(dtype=q.dtype, width=width, rows=rows, keys=tiles.keys):
        raise ValueError(why)
    if rows != tiles.rows or scale <= 0:
        raise ValueError(f"needs tiles of {tiles.rows} rows, not {rows}, and a scale above 0, not {scale}")
    items = work.q_tile.shape[0]
    numbers = tuple(number for number, stream in enumerate(streams) if stream.k.shape[2])
    kernel = functools.partial(
        _kernel, numbers=numbers, scale=scale * math.log2(math.e), tiles=tiles, interpret=interpret
    )
    return pl.pallas_call(
        kernel,
        grid=(items, kv_heads),  # Items side by side share keys, so that most reads hit the second-level cache.
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
        jnp.asarray(layer, jnp.int32).reshape(1), work.q_tile, work.item_start, work.item_end, work.full_start,
        work.full_end, work.row_start, work.row_end, q, *(part for number in numbers for part in streams[number]),
    )  # fmt: skip
