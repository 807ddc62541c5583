"""Range attention for NVIDIA GPUs from Ampere on, in Pallas' Triton dialect.

One program takes one item and one key head: it loads its tile of queries once and walks the item's keys,
stream after stream, in tiles that start at the item's first key. Tiles that every row sees are one loop,
plain flash attention, which Triton pipelines (asynchronous copies, tensor cores); tiles at either edge are
a second loop with compares. Keys and values are read where they lie, [L, K, S, D], at a traced layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.reference import Stream
from pallas_kernels.attention.tiles import Tiles
from pallas_kernels.attention.work import Work

try:  # Deprecated since jax 0.11: everything that is Triton's own is reached by this name.
    from jax.experimental.pallas import triton
except ImportError:
    triton = None

_UNSEEN = -1e30  # logit of a key that a row does not see
_LOWEST = -1e15  # where the running maximum starts: above _UNSEEN, so that exp2 of an unseen logit is exactly 0
_SMALLEST_DOT = 16


def refusal(*, dtype: jnp.dtype, width: int, rows: int, keys: int) -> str | None:
    """Why this kernel cannot run, in one line with what to do instead; None where it can."""
    if triton is None:
        return f"jax {jax.__version__} has no Pallas Triton: use another kernel, or a jax before its removal"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"dtype must be bfloat16, float16 or float32, not {jnp.dtype(dtype)}: convert queries, keys and values"
    if width < _SMALLEST_DOT or width % 8:
        return f"the head width must be a multiple of 8 from {_SMALLEST_DOT} on, not {width}: pad it with zeros"
    for name, size in (("rows", rows), ("keys", keys)):
        if size < _SMALLEST_DOT or size & (size - 1):
            return f"{name} of a tile must be a power of two from {_SMALLEST_DOT} on, not {size}: choose other tiles"
    return None


def _columns(width: int) -> list[tuple[int, int]]:
    """The head width as (offset, size) of parts whose sizes are powers of two, as Triton wants them.

    128 is one part; 72 is 64 + 16, where the last part lies over 8 columns of the one before: nothing is
    read outside, and blanking those columns of the queries keeps them from counting twice.
    """
    parts, done = [], 0
    while done < width:
        size = max(_SMALLEST_DOT, 1 << (width - done).bit_length() - 1)
        parts.append((min(done, width - size), size))
        done += size
    return parts


def _dot(a: jax.Array, b: jax.Array, contract_b: int) -> jax.Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, (((1,), (contract_b,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _exp2(x: jax.Array, scale: float, shift: jax.Array, interpret: bool) -> jax.Array:
    """2 ** (x * scale - shift) in two instructions: the compiler neither fuses the product and the difference
    nor leaves out the care for subnormal results."""
    if interpret:
        return jnp.exp2(x * scale - shift)
    args = [x, jnp.full_like(x, scale), jnp.broadcast_to(-shift, x.shape)]
    fused = "{ .reg .f32 t; fma.rn.f32 t, $1, $2, $3; ex2.approx.ftz.f32 $0, t; }"
    return triton.elementwise_inline_asm(fused, args=args, constraints="=f,f,f,f", pack=1, result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)])[0]


def _kernel(layer, query, first, stop, clear_first, clear_stop, row_starts, row_stops, q, *refs, numbers, scale, keys, interpret):
    caches, (out, lse) = refs[:-2], refs[-2:]
    item, head = pl.program_id(0), pl.program_id(1)
    layer, query = layer[0], query[item]
    rows, width = q.shape[2:]
    columns = _columns(width)

    def load_tile(ref, start, mask=None):
        tile = lambda offset, size: ref.at[layer, head, pl.ds(start, keys), pl.ds(offset, size)]
        if mask is None:
            return [triton.load(tile(*part)) for part in columns]
        spread = lambda size: jnp.broadcast_to(mask[:, None], (keys, size))
        return [triton.load(tile(*part), mask=spread(part[1]), other=0) for part in columns]

    def load_queries():
        parts, done = [], 0
        for offset, size in columns:
            part = triton.load(q.at[head, query, :, pl.ds(offset, size)])
            if offset < done:
                part = jnp.where(lax.broadcasted_iota(jnp.int32, part.shape, 1) < done - offset, 0, part)
            parts.append(part)
            done = offset + size
        return parts

    queries = load_queries()

    def update(carry, start, k, v, row_start=None, row_stop=None):
        peak, total, accs = carry
        logits = sum(_dot(a, b, 1) for a, b in zip(queries, k, strict=True))
        if row_start is not None:
            key = start + lax.broadcasted_iota(jnp.int32, logits.shape, 1)
            logits = jnp.where((key >= row_start[:, None]) & (key < row_stop[:, None]), logits, _UNSEEN)
        new_peak = jnp.maximum(peak, jnp.max(logits, axis=1) * scale)
        weights = _exp2(logits, scale, new_peak[:, None], interpret)
        shrink = _exp2(peak, 1.0, new_peak, interpret)
        accs = tuple(
            acc * shrink[:, None] + _dot(weights.astype(part.dtype), part, 0) for acc, part in zip(accs, v, strict=True)
        )
        return new_peak, total * shrink + jnp.sum(weights, axis=1), accs

    carry = (
        jnp.full((rows,), _LOWEST, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
        tuple(jnp.zeros((rows, size), jnp.float32) for _, size in columns),
    )
    for number, k_ref, v_ref in zip(numbers, caches[::2], caches[1::2], strict=True):
        begin, end = first[number, item], stop[number, item]
        tiles = pl.cdiv(end - begin, keys)
        left = pl.cdiv(clear_first[number, item] - begin, keys)
        clear = jnp.maximum((clear_stop[number, item] - begin) // keys - left, 0)

        def clear_tile(tile, carry, begin=begin, k_ref=k_ref, v_ref=v_ref):
            start = begin + tile * keys
            return update(carry, start, load_tile(k_ref, start), load_tile(v_ref, start))

        carry = lax.fori_loop(left, left + clear, clear_tile, carry)
        row_start = row_starts[number, query, :]
        row_stop = jnp.minimum(row_stops[number, query, :], end)

        def edge_tile(tile, carry, begin=begin, end=end, k_ref=k_ref, v_ref=v_ref, left=left, clear=clear,
                      row_start=row_start, row_stop=row_stop):
            start = begin + jnp.where(tile < left, tile, tile + clear) * keys
            inside = start + lax.iota(jnp.int32, keys) < end
            return update(carry, start, load_tile(k_ref, start, inside), load_tile(v_ref, start, inside), row_start, row_stop)

        carry = lax.fori_loop(0, tiles - clear, edge_tile, carry)

    peak, total, accs = carry
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    for (offset, size), acc in zip(columns, accs, strict=True):
        triton.store(out.at[:, pl.ds(offset, size)], (acc / total[:, None]).astype(out.dtype))
    lse[...] = jnp.where(seen, peak * math.log(2) + jnp.log(total), -jnp.inf)


def attend_tiles(
    q: jax.Array,
    streams: Sequence[Stream],
    layer: jax.Array | int,
    work: Work,
    *,
    scale: float,
    tiles: Tiles,
    out_dtype: jnp.dtype,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    kv_heads, _, rows, width = q.shape
    items = work.query.shape[0]
    numbers = tuple(number for number, stream in enumerate(streams) if stream.k.shape[2])
    caches = [part for number in numbers for part in streams[number]]
    kernel = functools.partial(_kernel, numbers=numbers, scale=scale * math.log2(math.e), keys=tiles.keys, interpret=interpret)
    return pl.pallas_call(
        kernel,
        grid=(items, kv_heads),
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
        jnp.asarray(layer, jnp.int32).reshape(1), work.query, work.first, work.stop, work.clear_first, work.clear_stop,
        work.row_starts, work.row_stops, q, *caches,
    )
