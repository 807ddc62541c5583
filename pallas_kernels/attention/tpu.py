"""Range attention for TPUs, in Pallas' Mosaic.

Computes: softmax attention of each item's query rows over its key ranges, with the log-sum-exp (`attend_tiles`).

Tiling: the grid is (cores, key heads per core, items); its pipeline moves query tiles and results. Keys and values stay
in HBM. A ring of `tiles.stages` key and value tiles in VMEM is filled ahead of the arithmetic: one cursor walks the
tiles of all ranges, items and heads as a single sequence, so that copies continue across short ranges and item changes.
Tiles that every row sees completely skip the mask.

Limits: see `refusal`. Scalar memory (1 MiB) holds 16 bytes per item and stream; more items do not compile.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.tile_schedule import TileSchedule
from pallas_kernels.attention.tile_sizes import TileSizes
from pallas_kernels.attention.tpu_frames import attend_frames
from pallas_kernels.attention.tpu_frames import refusal as frames_refusal
from pallas_kernels.attention.tpu_gradient import attend_gradients, gradient_rows
from pallas_kernels.attention.tpu_gradient import refusal as gradient_refusal
from pallas_kernels.attention.tpu_layout import LANES, parts_of, start_multiple, sublanes
from pallas_kernels.attention.tpu_moved_ranges import log_sum_exp
from pallas_kernels.attention.tpu_step import Running, Tile, softmax_step
from pallas_kernels.kv_cache import KVCache

_HEAD, _ENTRY, _STEP, _FETCHED, _USED = range(5)  # fields of the cursor: next tile to copy, tiles copied, tiles used
__all__ = [
    "LANES",
    "READS_INT8",
    "WIDTH_MULTIPLE",
    "attend_frames",
    "attend_gradients",
    "attend_tiles",
    "frames_refusal",
    "gradient_refusal",
    "gradient_rows",
    "log_sum_exp",
    "refusal",
]

WIDTH_MULTIPLE = 16
"""Head widths must be multiples of this; others are padded with zeros."""
READS_INT8 = True
"""Whether caches may be in int8, with scales."""


def refusal(*, dtype: DTypeLike, width: int, rows: int) -> str | None:
    """The reason why this kernel cannot run, in one line with the alternative; None if it can.

    Args:
      dtype: of queries, and of keys and values that are not in int8.
      width: head width D.
      rows: query rows of a tile.
    """
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"the TPU kernel takes bfloat16 or float32, not {dtype.name}: use bfloat16"
    if width > LANES:
        return f"the TPU kernel takes head widths up to {LANES}, not {width}: use the reference"
    if rows % sublanes(dtype):
        return f"the TPU kernel takes {dtype.name} rows in multiples of {sublanes(dtype)}, not {rows}: pad the tile"
    return None


def _kernel(
    item_start, item_end, unmasked_start, unmasked_end, _q_tile, layer, q, row_bounds, *refs,
    streams: int, parts: int, heads: int, items: int, keys: int, scale: float,
) -> None:  # fmt: skip
    """One item for one key head.

    The first four tables [items · streams] are in scalar memory. Entry item · streams + stream is the key range of an
    item in a stream. `row_bounds` [1, 2 · streams, rows] holds row_start and row_end of every stream.
    """
    # Keys and values of every stream, and of caches in int8 their scales; a ring for each of these two or four.
    rings = refs[streams * parts + 2 : streams * parts + 2 + parts]
    caches = [refs[s * parts : (s + 1) * parts] for s in range(streams)]
    out, lse = refs[streams * parts : streams * parts + 2]
    arrived, cursor, ring, *state = refs[streams * parts + 2 + parts :]
    running, factor = Running(*state), 1.0 if parts == 4 else scale * math.log2(math.e)
    stages, align = rings[0].shape[0], start_multiple(rings[0].dtype)
    slots = [cache[0].shape[2] for cache in caches]
    sizes = [min(keys, length) for length in slots]
    core, head, item = (pl.program_id(axis) for axis in range(3))
    # Large masked tiles are processed in parts: only those that hold keys of the range, and with a mask only where some row needs it.
    part_keys = keys if keys <= 6 * LANES else math.gcd(keys, 4 * LANES)

    def aligned_start(entry):
        return item_start[entry] & -align

    def copies(s: int, head, start, slot) -> Iterator[Any]:
        own, held = pl.ds(pl.multiple_of(start, align), sizes[s]), pl.ds(0, sizes[s])
        for index, (cache, target) in enumerate(zip(caches[s], rings, strict=True)):
            at = (own,) if index < 2 else (slice(None), own)  # scales are rows of lanes
            to = (held,) if index < 2 else (slice(None), held)
            yield pltpu.make_async_copy(
                cache.at[layer[0], core * heads + head, *at], target.at[slot, *to], arrived.at[slot, index]
            )

    def fetch() -> None:
        """Start copying the next tile of the sequence, if there is one."""
        entries = items * streams

        def following(head, entry):
            wraps = entry + 1 == entries
            return jnp.where(wraps, head + 1, head), jnp.where(wraps, 0, entry + 1)

        head, entry = lax.while_loop(
            lambda at: (at[0] < heads) & (item_end[at[1]] <= item_start[at[1]]),
            lambda at: following(*at),
            (cursor[_HEAD], cursor[_ENTRY]),
        )
        cursor[_HEAD], cursor[_ENTRY] = head, entry

        @pl.when(head < heads)
        def _() -> None:
            slot = lax.rem(cursor[_FETCHED], stages)
            first_key = aligned_start(entry) + cursor[_STEP] * keys
            for s in range(streams):

                @pl.when(lax.rem(entry, streams) == s)
                def _(s=s) -> None:
                    # A tile that would reach past the stream starts earlier; its keys before `first_key` are masked.
                    start = jnp.minimum(first_key, slots[s] - sizes[s])
                    ring[0, slot], ring[1, slot], ring[2, slot] = s, start, first_key
                    for copy in copies(s, head, start, slot):
                        copy.start()

            is_last = first_key + keys >= item_end[entry]
            next_head, next_entry = following(head, entry)
            cursor[_HEAD], cursor[_ENTRY] = jnp.where(is_last, next_head, head), jnp.where(is_last, next_entry, entry)
            cursor[_STEP] = jnp.where(is_last, 0, cursor[_STEP] + 1)
            cursor[_FETCHED] += 1

    @pl.when((head == 0) & (item == 0))
    def _() -> None:
        for field in range(5):
            cursor[field] = 0
        if min(sizes) < keys:  # short copies leave rows unset; they are multiplied by 0, so they must not hold a NaN
            for values in rings[1::2]:
                values[...] = jnp.zeros_like(values)
        for _ in range(stages - 1):
            fetch()

    running.reset()

    def fold(slot, at=slice(None), mask=None) -> None:
        k, v = (ring[slot, at].astype(q.dtype) for ring in rings[:2])
        k_scale, v_scale = (ring[slot, :, at] for ring in rings[2:]) if parts == 4 else (None, None)
        k_scale = None if k_scale is None else k_scale * (scale * math.log2(math.e))
        softmax_step(q.at[0, 0], Tile(k, v, k_scale, v_scale), running, factor, mask)

    def step(_, carry):
        fetch()
        slot = lax.rem(cursor[_USED], stages)
        cursor[_USED] += 1
        stream, start, first_key = ring[0, slot], ring[1, slot], ring[2, slot]
        entry = item * streams + stream
        for s in range(streams):

            @pl.when(stream == s)
            def _(s=s) -> None:
                for copy in copies(s, head, 0, slot):
                    copy.wait()

        full = (unmasked_start[entry] <= first_key) & (start == first_key) & (first_key + keys <= unmasked_end[entry])

        @pl.when(full)
        def _() -> None:
            fold(slot)

        @pl.when(jnp.logical_not(full))
        def _() -> None:
            row_start, row_end = (row_bounds[0, pl.ds(2 * stream + index, 1)] for index in range(2))
            low, high = jnp.maximum(item_start[entry], first_key), jnp.minimum(item_end[entry], start + keys)
            offset = jnp.maximum(row_start, low) - start
            length = jnp.maximum(jnp.minimum(row_end, high) - start - offset, 0)
            # Repeat a row's bounds in all lanes once: broadcasting them in every part costs more than the comparison.
            offset, length = (jnp.broadcast_to(a, (LANES, a.shape[1])).T for a in (offset, length))
            length = length.astype(jnp.uint32)

            def to_part(a):
                return jnp.concatenate([a] * (part_keys // LANES), axis=1)

            def part_step(number, carry):
                at = pl.ds(pl.multiple_of(number * part_keys, part_keys), part_keys)
                first = start + number * part_keys
                clear = (
                    (part_keys < keys)
                    & (jnp.maximum(unmasked_start[entry], low) <= first)
                    & (first + part_keys <= unmasked_end[entry])
                )

                @pl.when(clear)
                def _() -> None:
                    fold(slot, at)

                @pl.when(jnp.logical_not(clear))
                def _() -> None:
                    # One unsigned comparison checks both ends of the range.
                    key = number * part_keys + lax.broadcasted_iota(jnp.int32, (1, part_keys), 1) - to_part(offset)
                    fold(slot, at, key.astype(jnp.uint32) < to_part(length))

                return carry

            lax.fori_loop((low - start) // part_keys, pl.cdiv(high - start, part_keys), part_step, None)

        return carry

    def tile_count(entry):
        nonempty = item_end[entry] > item_start[entry]
        return jnp.where(nonempty, pl.cdiv(item_end[entry] - aligned_start(entry), keys), 0)

    lax.fori_loop(0, sum(tile_count(item * streams + s) for s in range(streams)), step, None)

    result, natural = running.results(factor)
    out[0, 0] = result.astype(out.dtype)
    lse[0, 0] = natural.T[:1]


@functools.partial(jax.jit, static_argnames=("scale", "tiles", "out_dtype", "interpret"))
def attend_tiles(
    q: Float[Array, "K Q rows D"],
    streams: Sequence[KVCache],
    layer: Int[ArrayLike, ""],
    schedule: TileSchedule,
    *,
    scale: float,
    tiles: TileSizes,
    out_dtype: DTypeLike,
    interpret: Any = False,
) -> tuple[Float[Array, "K T rows D"], Float[Array, "K T rows"]]:
    """Attention of the T items of a schedule in one layer of the streams; sums are fp32.

    Args:
      q: query tiles (rotated, unscaled), `rows` as in `tiles`; bfloat16 or float32 (full fp32 products).
      streams: caches [L, K, S, D] in q's dtype or in int8. They are read in place if S is a multiple of
        `start_multiple(dtype)` and D is 128; otherwise all their layers are copied, so allocate them accordingly.
      layer: index into L; may be traced.
      schedule: what each item reads.
      scale: of the logits, positive.
      tiles: tile sizes; `keys` is rounded up to a multiple of 128, `warps` is ignored.
      out_dtype: dtype of the output.
      interpret: True or pltpu.InterpretParams to run in an interpreter on a CPU.

    Returns:
      Output in `out_dtype` and natural log-sum-exp in fp32, over the keys of each item. A row that sees no key of its
      item gets zeros and −inf; a row that sees no key in any item may get any finite value.

    Raises:
      ValueError: with the text of `refusal`.
    """
    kv_heads, _, rows, width = q.shape
    if reason := refusal(dtype=q.dtype, width=width, rows=rows):
        raise ValueError(reason)
    count, items, keys = len(streams), schedule.q_tile.shape[0], -(-tiles.keys // LANES) * LANES
    caches = [part for stream in streams for part in parts_of(stream, interpret)]
    parts = len(caches) // count
    row_bounds = jnp.stack([schedule.row_start, schedule.row_end], axis=1).reshape(2 * count, -1, rows).swapaxes(0, 1)
    key_ranges = (schedule.item_start, schedule.item_end, schedule.unmasked_start, schedule.unmasked_end)
    cores = 2 if kv_heads % 2 == 0 else 1  # chips with two cores in one device split this dimension of the grid
    heads = kv_heads // cores

    def q_block(core, head, item, *tables) -> tuple:
        return (core * heads + head, tables[4][item], 0, 0)

    def out_block(core, head, item, *_) -> tuple:
        return (core * heads + head, item, 0, 0)

    out, lse = pl.pallas_call(
        functools.partial(_kernel, streams=count, parts=parts, heads=heads, items=items, keys=keys, scale=scale),
        out_shape=(
            jax.ShapeDtypeStruct((kv_heads, items, rows, width), out_dtype),
            jax.ShapeDtypeStruct((kv_heads, items, 1, rows), jnp.float32),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=6,
            grid=(cores, heads, items),
            in_specs=[
                pl.BlockSpec((1, 1, rows, width), q_block),
                pl.BlockSpec((1, 2 * count, rows), lambda core, head, item, *tables: (tables[4][item], 0, 0)),
                *[pl.BlockSpec(memory_space=pl.ANY)] * (parts * count),
            ],
            out_specs=[pl.BlockSpec((1, 1, rows, width), out_block), pl.BlockSpec((1, 1, 1, rows), out_block)],
            scratch_shapes=[
                *[pltpu.VMEM((tiles.stages, keys, width), streams[0].dtype)] * 2,
                *[pltpu.VMEM((tiles.stages, 1, keys), jnp.float32)] * (parts - 2),
                pltpu.SemaphoreType.DMA((tiles.stages, parts)),
                pltpu.SMEM((5,), jnp.int32),
                pltpu.SMEM((3, tiles.stages), jnp.int32),
                pltpu.VMEM((rows, LANES), jnp.float32),
                pltpu.VMEM((rows, LANES), jnp.float32),
                pltpu.VMEM((rows, width), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            disable_bounds_checks=True,  # copies always lie inside the streams; checks cost as much as starting a copy
        ),
        interpret=interpret,
    )(
        *(table.T.reshape(-1) for table in key_ranges), schedule.q_tile, jnp.asarray(layer, jnp.int32).reshape(1),
        q, row_bounds, *caches,
    )  # fmt: skip
    return out, lse[:, :, 0]
