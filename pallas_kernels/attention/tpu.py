"""Range attention on TPU (Pallas Mosaic): flash attention over a list of key ranges.

The grid walks the items of each key head; queries and results move by the grid's own pipeline. Keys and
values stay in device memory, and a ring of buffers is filled ahead of the arithmetic: one cursor walks the
tiles of all ranges, of all items and of all heads as a single sequence, so that short ranges and item
changes do not stall. Tiles that every row sees whole skip the mask.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.reference import KVCache
from pallas_kernels.attention.tile_schedule import TileSchedule
from pallas_kernels.attention.tile_sizes import TileSizes

LANES = 128
_HIDDEN = -1e30  # the logit of a key that a row does not see
_FLOOR = -1e15  # where the running maximum starts: exp2(_HIDDEN − maximum) is exactly 0 from the first tile on
_HEAD, _RUN, _STEP, _FETCHED, _USED = range(5)  # fields of the cursor


def sublanes(dtype: jnp.dtype) -> int:
    """What tiles of rows, and where slices of keys begin, must be multiples of: 16 in bfloat16, 8 in float32."""
    return 32 // jnp.dtype(dtype).itemsize


def refusal(*, dtype: jnp.dtype, width: int, rows: int) -> str | None:
    """Why this kernel cannot run, in one line with the alternative; None if it can."""
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"the TPU kernel takes bfloat16 or float32, not {dtype.name}: use bfloat16"
    if width > LANES:
        return f"the TPU kernel takes head widths up to {LANES}, not {width}: use the reference"
    if rows % sublanes(dtype):
        return f"the TPU kernel takes {dtype.name} rows in multiples of {sublanes(dtype)}, not {rows}: pad the tile"
    return None


def _kernel(
    item_start, item_end, full_start, full_end, _query, layer, q, bounds, *refs, streams, heads, items, keys, scale
):
    """One item of one head. A run is one range of one item; tables of runs lie in scalar memory, an item's streams
    side by side. `bounds`: starts and stops of the rows in every stream [1, 2 · streams, rows]."""
    caches, (out, lse), scratch = refs[: 2 * streams], refs[2 * streams : 2 * streams + 2], refs[2 * streams + 2 :]
    k_ring, v_ring, arrived, cursor, ring, peak, total, mixed = scratch
    stages, align = k_ring.shape[0], sublanes(k_ring.dtype)
    caches = [caches[2 * s : 2 * s + 2] for s in range(streams)]
    sizes = [min(keys, k.shape[2]) for k, _ in caches]
    core, head, item = (pl.program_id(axis) for axis in range(3))
    precision = lax.Precision.HIGHEST if k_ring.dtype == jnp.float32 else None
    # Large masked tiles are gone through in parts: only those that hold keys of the range.
    edge = keys if keys <= 6 * LANES else math.gcd(keys, 4 * LANES)

    def begin_of(run):
        return item_start[run] & -align

    def copies(s, head, begin, slot):
        source = (layer[0], core * heads + head, pl.ds(pl.multiple_of(begin, align), sizes[s]))
        for part, (cache, into) in enumerate(zip(caches[s], (k_ring, v_ring), strict=True)):
            yield pltpu.make_async_copy(cache.at[source], into.at[slot, pl.ds(0, sizes[s])], arrived.at[slot, part])

    def fetch():
        """Start copying the next tile of the sequence, if there is one."""
        runs = items * streams

        def after(head, run):
            wraps = run + 1 == runs
            return jnp.where(wraps, head + 1, head), jnp.where(wraps, 0, run + 1)

        head, run = lax.while_loop(
            lambda at: (at[0] < heads) & (item_end[at[1]] <= item_start[at[1]]),
            lambda at: after(*at),
            (cursor[_HEAD], cursor[_RUN]),
        )
        cursor[_HEAD], cursor[_RUN] = head, run

        @pl.when(head < heads)
        def _():
            slot = lax.rem(cursor[_FETCHED], stages)
            low = begin_of(run) + cursor[_STEP] * keys
            for s in range(streams):

                @pl.when(lax.rem(run, streams) == s)
                def _(s=s):
                    # The last tile is shifted back to stay inside; keys before `low` are left out.
                    begin = jnp.minimum(low, caches[s][0].shape[2] - sizes[s])
                    ring[0, slot], ring[1, slot], ring[2, slot] = s, begin, low
                    for copy in copies(s, head, begin, slot):
                        copy.start()

            ends = low + keys >= item_end[run]
            next_head, next_run = after(head, run)
            cursor[_HEAD], cursor[_RUN] = jnp.where(ends, next_head, head), jnp.where(ends, next_run, run)
            cursor[_STEP] = jnp.where(ends, 0, cursor[_STEP] + 1)
            cursor[_FETCHED] += 1

    @pl.when((head == 0) & (item == 0))
    def _():
        for field in range(5):
            cursor[field] = 0
        if min(sizes) < keys:  # what copies leave untouched is multiplied by 0, which must not meet a NaN
            v_ring[...] = jnp.zeros_like(v_ring)
        for _ in range(stages - 1):
            fetch()

    peak[...] = jnp.full_like(peak, _FLOOR)
    total[...] = jnp.zeros_like(total)
    mixed[...] = jnp.zeros_like(mixed)

    def accumulate(k, v, seen=None):
        logits = lax.dot_general(
            q[0, 0], k, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
        ) * (scale * math.log2(math.e))
        if seen is not None:
            logits = jnp.where(seen, logits, _HIDDEN)
        before = peak[...]
        now = jnp.maximum(before, jnp.max(logits, axis=1, keepdims=True))
        shrink = jnp.exp2(before - now)
        # Per-lane sums: lanes are added up once per item, not once per tile.
        blocks = [slice(b, b + LANES) for b in range(0, k.shape[0], LANES)]
        weights = [jnp.exp2(logits[:, block] - now) for block in blocks]
        peak[...] = now
        total[...] = total[...] * shrink + functools.reduce(jnp.add, weights)
        weights = jnp.concatenate([w.astype(v.dtype) for w in weights], axis=1)
        mixed[...] = mixed[...] * shrink[:, : mixed.shape[1]] + lax.dot_general(
            weights, v, (((1,), (0,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
        )

    def step(_, carry):
        fetch()
        slot = lax.rem(cursor[_USED], stages)
        cursor[_USED] += 1
        stream, begin, low = ring[0, slot], ring[1, slot], ring[2, slot]
        run = item * streams + stream
        for s in range(streams):

            @pl.when(stream == s)
            def _(s=s):
                for copy in copies(s, head, 0, slot):
                    copy.wait()

        clear = (full_start[run] <= low) & (begin == low) & (low + keys <= full_end[run])

        @pl.when(clear)
        def _():
            accumulate(k_ring[slot], v_ring[slot])

        @pl.when(jnp.logical_not(clear))
        def _():
            start, end = (bounds[0, pl.ds(2 * stream + field, 1)] for field in range(2))
            lowest, highest = jnp.maximum(item_start[run], low), jnp.minimum(item_end[run], begin + keys)
            start = jnp.maximum(start, lowest) - begin
            length = jnp.maximum(jnp.minimum(end, highest) - begin - start, 0)
            # A row's bounds lie in all lanes: broadcasting them in every part costs more than the comparison.
            start, length = (jnp.broadcast_to(row, (LANES, row.shape[1])).T for row in (start, length))
            length = length.astype(jnp.uint32)

            def repeated(a):
                return jnp.concatenate([a] * (edge // LANES), axis=1)

            def part(number, carry):
                at = pl.ds(pl.multiple_of(number * edge, edge), edge)
                # One unsigned comparison does for both ends.
                offset = number * edge + lax.broadcasted_iota(jnp.int32, (1, edge), 1) - repeated(start)
                accumulate(k_ring[slot, at], v_ring[slot, at], offset.astype(jnp.uint32) < repeated(length))
                return carry

            lax.fori_loop((lowest - begin) // edge, pl.cdiv(highest - begin, edge), part, None)

        return carry

    def tiles_of(run):
        return jnp.where(item_end[run] > item_start[run], pl.cdiv(item_end[run] - begin_of(run), keys), 0)

    lax.fori_loop(0, sum(tiles_of(item * streams + s) for s in range(streams)), step, None)

    whole = jnp.sum(total[...], axis=1, keepdims=True)
    seen = whole > 0
    safe = jnp.where(seen, whole, 1.0)
    out[0, 0] = (mixed[...] / safe).astype(out.dtype)
    natural = (peak[...] + jnp.log2(safe)) * math.log(2)
    lse[0, 0] = jnp.where(seen, natural, -jnp.inf).T[:1]


@functools.partial(jax.jit, static_argnames=("scale", "tiles", "out_dtype", "interpret"))
def attend_tiles(
    q: jax.Array,
    streams: Sequence[KVCache],
    layer: jax.Array | int,
    work: TileSchedule,
    *,
    scale: float,
    tiles: TileSizes,
    out_dtype: jnp.dtype,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Attention of each item's rows over its key ranges.

    Shapes: q [K, Q, tiles.rows, D] (rotated, unscaled); streams of [L, K, S, D]; `work` of T items. Returns
    out [K, T, rows, D] in `out_dtype` and the natural log-sum-exp fp32 [K, T, rows]: zeros and −inf where a
    row sees no key of its item (padding rows, which see nothing anywhere, hold anything finite).

    Streams are read in place if S is a multiple of `sublanes(dtype)` and D is 128; otherwise they are copied first,
    all layers of them: allocate them so. Scalar memory (1 MiB) holds 16 bytes per item and stream; more items do not
    compile. `tiles.keys` is rounded up to a multiple of 128; `tiles.warps` is not used.
    `interpret`: True, or a pltpu.InterpretParams. Raises ValueError with `refusal`'s line.
    """
    kv_heads, _, rows, width = q.shape
    if reason := refusal(dtype=q.dtype, width=width, rows=rows):
        raise ValueError(reason)
    count, items, keys = len(streams), work.q_tile.shape[0], -(-tiles.keys // LANES) * LANES

    def short(cache):
        return -cache.shape[2] % sublanes(q.dtype)

    caches = [jnp.pad(c, ((0, 0), (0, 0), (0, short(c)), (0, 0))) if short(c) else c for s in streams for c in s]
    bounds = jnp.stack([work.row_start, work.row_end], axis=1).reshape(2 * count, -1, rows).swapaxes(0, 1)
    tables = [table.T.reshape(-1) for table in (work.item_start, work.item_end, work.full_start, work.full_end)]
    cores = 2 if kv_heads % 2 == 0 else 1  # chips with two cores in one device split this dimension of the grid
    heads = kv_heads // cores

    def of_query(core, head, item, *tables):
        return (core * heads + head, tables[4][item], 0, 0)

    def of_item(core, head, item, *_):
        return (core * heads + head, item, 0, 0)

    out, lse = pl.pallas_call(
        functools.partial(_kernel, streams=count, heads=heads, items=items, keys=keys, scale=scale),
        out_shape=(
            jax.ShapeDtypeStruct((kv_heads, items, rows, width), out_dtype),
            jax.ShapeDtypeStruct((kv_heads, items, 1, rows), jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=6,
            grid=(cores, heads, items),
            in_specs=[
                pl.BlockSpec((1, 1, rows, width), of_query),
                pl.BlockSpec((1, 2 * count, rows), lambda core, head, item, *tables: (tables[4][item], 0, 0)),
                *[pl.BlockSpec(memory_space=pl.ANY)] * (2 * count),
            ],
            out_specs=[pl.BlockSpec((1, 1, rows, width), of_item), pl.BlockSpec((1, 1, 1, rows), of_item)],
            scratch_shapes=[
                pltpu.VMEM((tiles.stages, keys, width), q.dtype),
                pltpu.VMEM((tiles.stages, keys, width), q.dtype),
                pltpu.SemaphoreType.DMA((tiles.stages, 2)),
                pltpu.SMEM((5,), jnp.int32),
                pltpu.SMEM((3, tiles.stages), jnp.int32),
                pltpu.VMEM((rows, LANES), jnp.float32),
                pltpu.VMEM((rows, LANES), jnp.float32),
                pltpu.VMEM((rows, width), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            disable_bounds_checks=True,  # copies are kept inside the streams; checks cost as much as starting them
        ),
        interpret=interpret,
    )(*tables, work.q_tile, jnp.asarray(layer, jnp.int32).reshape(1), q, bounds, *caches)
    return out, lse[:, :, 0]
