"""Attention over a cache given as runs, in place: one step, a short question, or a step of many questions.

The shift of a run is put on the query, turned the opposite way, instead of on the keys; each run is read
where it lies, cut into items over the machine, and the parts are merged by log-sum-exp. Keys are read once
for all query heads that share them and for all tokens (of one question or of many) that stand in the rows of a tile.
A row that does not ask for a run computes along, and what it gets is left out when parts are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from pallas_kernels.attention import tile_schedule
from pallas_kernels.attention.dispatch import Kernel, run_items
from pallas_kernels.attention.reference import KVCache
from pallas_kernels.attention.tile_schedule import EVERYTHING, TileSchedule
from pallas_kernels.attention.tile_sizes import TileSizes
from pallas_kernels.decode.segments import WorkItems


def item_count(kernel: Kernel, kv_heads: int, room: int, rows: int = 1, waves: int = 4) -> int:
    """Into how many items to cut a cache of up to `room` runs, so that `rows` packed rows fill the machine.

    Every item of every tile of rows leaves a partial result behind: no more of them than are of use.
    """
    tiles_of_rows = -(-rows // kernel.tiles_for(rows).rows)
    return room + -(-waves * kernel.cores // (kv_heads * tiles_of_rows))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("work", "shift", "asked"),
    meta_fields=("kernel", "repeats", "tiles", "tiles_of_rows"),
)
@dataclass(frozen=True)
class SegmentPlan:
    """What queries read, made ready once and used in every layer: a pytree.

    shift int32 [R, N], or [R, 1] where it is the same for all queries: of the runs; asked bool [I + 1, tiles, rows]:
    the rows that each item, and last the tail, is for; None: all.
    """

    work: TileSchedule
    shift: jax.Array
    asked: jax.Array | None
    kernel: Kernel
    repeats: int
    tiles: TileSizes
    tiles_of_rows: int


def plan_segments(
    kernel: Kernel, items: WorkItems, tail_starts: jax.Array, tail_stops: jax.Array, *, repeats: int
) -> SegmentPlan:
    """Tables for N queries that see all items (or those that are asked of them, `items.asked` [R, N]), and
    tail_starts[n] ≤ index < tail_stops[n] of a tail.

    Shapes: tail_starts, tail_stops int32 [N]. The tail is what came after the cache: the question itself and
    the answer so far. A query that sees nothing of the tail is padding; tiles of them alone are not worked on.
    repeats: query heads per key head.
    """
    sizes = kernel.tiles_for(len(tail_stops) * repeats)
    tail = tile_schedule.schedule_tiles(tail_starts[None], tail_stops[None], repeats, sizes.rows)
    tiles_of_rows = tail.q_tile.shape[0]
    table = _with_tail(items, tail, tiles_of_rows)
    shift = jnp.asarray(items.shift)
    asked = None
    if items.asked is not None:
        asked = tile_schedule.tiled_rows(jnp.asarray(items.asked), repeats, sizes.rows)[jnp.asarray(items.run)]
        asked = jnp.concatenate([asked, jnp.ones_like(asked[:1])])
    return SegmentPlan(
        table, shift if shift.ndim == 2 else shift[:, None], asked, kernel, repeats, sizes, tiles_of_rows
    )


def attend(
    q_by_run: jax.Array,
    q: jax.Array,
    streams: Sequence[KVCache],
    tail: KVCache,
    reads: SegmentPlan,
    *,
    layer: jax.Array | int = 0,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of N queries over all items of the streams and a range each of the tail.

    Shapes: q [N, H, D], rotated at its positions; q_by_run [R, N, H, D], rotated at its positions less each
    run's shift; streams and tail of [L, K, *, D]. Returns out [N, H, D] in q's dtype and the natural
    log-sum-exp fp32 [N, H]. Raises ValueError for a dtype or width that the kernel does not take.
    """
    count, heads, width = q.shape
    kv_heads, rows = heads // reads.repeats, reads.tiles.rows
    dtype = tail.k.dtype
    by_run = jax.vmap(lambda one: tile_schedule.pack_rows(one, kv_heads, rows))(
        jnp.concatenate([q_by_run, q[None]]).astype(dtype)
    )
    out, lse = run_items(
        reads.kernel,
        rearrange(by_run, "a k t r d -> k (a t) r d"),
        (*streams, tail),
        layer,
        reads.work,
        scale=width**-0.5 if scale is None else scale,
        sizes=reads.tiles,
        out_dtype=jnp.float32,
    )

    def by_item(a):
        return a.reshape(kv_heads, -1, reads.tiles_of_rows, *a.shape[2:])

    out, lse = by_item(out), by_item(lse)
    if reads.asked is not None:
        lse = jnp.where(reads.asked, lse, -jnp.inf)
    out, lse = tile_schedule.merge_partials(out, lse, axis=1)
    out, lse = (tile_schedule.unpack_rows(a, count, reads.repeats) for a in (out, lse))
    return out.astype(q.dtype), lse


def _with_tail(items: WorkItems, tail: TileSchedule, tiles_of_rows: int) -> TileSchedule:
    """Every tile of rows takes every item, and then its part of the tail. Tiles of q: run by run, the tail's last."""
    runs, streams = len(items.shift), len(items.item_start)
    rows, own = tail.row_start.shape[-1], jnp.arange(tiles_of_rows, dtype=jnp.int32)
    here = jnp.tile((tail.row_end > tail.row_start).any(axis=(0, 2)), items.item_start.shape[1])

    def bounds(of_items: jax.Array, of_tail: jax.Array) -> jax.Array:
        """Of items [S, I] and of the tail [1, tiles] → [S + 1, (I + 1) · tiles]."""
        spread = jnp.where(here, repeat(jnp.asarray(of_items, jnp.int32), "s i -> s (i t)", t=tiles_of_rows), 0)
        return jnp.concatenate([jnp.pad(spread, ((0, 1), (0, 0))), jnp.pad(of_tail, ((streams, 0), (0, 0)))], axis=1)

    def row_bounds(everywhere: int, of_tail: jax.Array) -> jax.Array:
        """In the streams every row sees all of an item; in the tail each sees its own range."""
        anywhere = jnp.full((streams, (runs + 1) * tiles_of_rows, rows), everywhere, jnp.int32)
        return jnp.concatenate([anywhere, jnp.pad(of_tail, ((0, 0), (runs * tiles_of_rows, 0), (0, 0)))])

    q_tile = rearrange(jnp.asarray(items.run)[:, None] * tiles_of_rows + own, "i t -> (i t)")
    return TileSchedule(
        q_tile=jnp.concatenate([q_tile, runs * tiles_of_rows + own]).astype(jnp.int32),
        item_start=bounds(items.item_start, tail.item_start),
        item_end=bounds(items.item_end, tail.item_end),
        full_start=bounds(items.item_start, tail.full_start),
        full_end=bounds(items.item_end, tail.full_end),
        row_start=row_bounds(0, tail.row_start),
        row_end=row_bounds(EVERYTHING, tail.row_end),
    )
