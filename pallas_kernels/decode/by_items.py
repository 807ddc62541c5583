"""Attention over segments in place, by items: every key is read once for all rows of a call.

The shift of a segment is put on the query, which is rotated the opposite way, instead of on the keys. Segments are
split into items over the device, and the partial results are merged by log-sum-exp. Keys are read once for all query
heads that share them and for all tokens (of one question or of many) in the rows of a tile. A row that does not use a
segment is computed all the same; its partial result is dropped when parts are merged. This is for memory-bound devices:
GPUs and TPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import tile_schedule
from pallas_kernels.attention.dispatch import run_items
from pallas_kernels.attention.kernel import Kernel
from pallas_kernels.attention.tile_schedule import EVERYTHING, TileSchedule
from pallas_kernels.attention.tile_sizes import TileSizes
from pallas_kernels.decode.segments import SegmentItems
from pallas_kernels.kv_cache import KVCache

_KEPT_MULTIPLE = 8
"""Rows whose results are kept are a multiple of this."""


def program_count(kernel: Kernel, kv_heads: int, rows: int) -> int | None:
    """Into how many shares to divide a cache for `rows` packed rows, so that a persistent kernel fills its device once;
    None for other kernels."""
    tiles_of_rows = -(-rows // kernel.tiles_for(rows).rows)
    return max(kernel.concurrent_items // (kv_heads * tiles_of_rows), 1) if kernel.persistent else None


def item_count(
    kernel: Kernel, kv_heads: int, capacity: int, rows: int = 1, waves: int = 4, programs: int | None = None
) -> int:
    """Into how many items to split a cache of up to `capacity` segments, so that `rows` packed rows fill the device.

    Every item of every tile of rows leaves a partial result behind, so there are no more of them than needed: one for
    each border of a segment or of the share of one of `programs`, or, where every item is a program of its own, enough for
    `waves` waves.
    """
    tiles_of_rows = -(-rows // kernel.tiles_for(rows).rows)
    return capacity + (programs or -(-waves * kernel.concurrent_items // (kv_heads * tiles_of_rows)))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("schedule", "shift", "used"),
    meta_fields=("kernel", "repeats", "tiles", "tiles_of_rows"),
)
@dataclass(frozen=True)
class ItemPlan:
    """Queries that share segments, of which every key is read once; scheduled once for all layers: a pytree.

    shift int32 [R + 1, B·N], or [R + 1, 1] where it is the same for all queries: of the R segments, then 0 for the tail;
    used bool [I + 1, tiles, rows]: the rows that read each of the I items, and last the tail; None: all rows.
    """

    schedule: TileSchedule
    shift: jax.Array | Any
    used: jax.Array | Any
    kernel: Kernel
    repeats: int
    tiles: TileSizes
    tiles_of_rows: int

    def positions(self, positions: Int[Array, "B N"]) -> Int[Array, "R1 BN"]:
        """The positions to which the copies in `rows` are rotated, from those of the queries: minus their segment's shift."""
        return positions.reshape(-1) - self.shift

    def rows(self, q: Float[Array, "B N H D"]) -> Float[Array, "R1 BN H D"]:
        """A copy of all queries for every segment, and one for the tail, before rotation."""
        flat = q.reshape(-1, *q.shape[2:])
        return jnp.broadcast_to(flat, (len(self.shift), *flat.shape))

    def attend(
        self, rows: Float[Array, "R1 BN H D"], streams: Sequence[KVCache], *, layer: Int[Array, ""] | int = 0
    ) -> tuple[Float[Array, "BN H D"], Float[Array, "BN H"]]:
        """Attention of rotated rows over the streams, the tail last. Returns out and the natural log-sum-exp (fp32)."""
        _, count, heads, width = rows.shape
        kv_heads = heads // self.repeats
        pack = partial(tile_schedule.pack_rows, kv_heads=kv_heads, rows=self.tiles.rows)
        packed = rearrange(jax.vmap(pack)(rows.astype(streams[0].query_dtype(rows.dtype))), "a k t r d -> k (a t) r d")
        out, lse = run_items(
            self.kernel,
            packed,
            streams,
            layer,
            self.schedule,
            scale=width**-0.5,
            tiles=self.tiles,
            out_dtype=jnp.float32,
        )
        by_tile = "k (i t) ... -> k i t ..." if self.schedule.first_item is None else "k (t i) ... -> k i t ..."
        out, lse = (rearrange(a, by_tile, t=self.tiles_of_rows) for a in (out, lse))
        if self.used is not None:
            lse = jnp.where(self.used[..., : lse.shape[-1]], lse, -jnp.inf)
        out, lse = tile_schedule.merge_partials([(out, lse)], axis=1)
        out, lse = (tile_schedule.unpack_rows(a, count, self.repeats) for a in (out, lse))
        return out.astype(rows.dtype), lse


def plan_items(
    kernel: Kernel,
    items: SegmentItems,
    tail_start: Int[ArrayLike, "B N"],
    tail_end: Int[ArrayLike, "B N"],
    *,
    repeats: int,
    reads_tail: jax.Array | None = None,
) -> ItemPlan:
    """Plan queries that see the items and the keys tail_start ≤ index < tail_end of the tail.

    Where items say who uses them (`items.used`), they have one column per query, so batched questions come with N = 1. The
    tail is what follows the cache: the question itself and the answer so far. A query that sees nothing of the tail
    is padding; tiles of padding alone cost nothing. repeats: query heads per key head. reads_tail: see
    `planning.plan_reads`.
    """
    tail_start, tail_end = (jnp.ravel(jnp.asarray(bound)) for bound in (tail_start, tail_end))
    count = len(tail_end) * repeats
    tiles = kernel.tiles_for(count)
    if count < tiles.rows:
        tiles = replace(tiles, kept=-(-count // _KEPT_MULTIPLE) * _KEPT_MULTIPLE)
    tail = tile_schedule.schedule_tiles(tail_start[None], tail_end[None], repeats, tiles.rows)
    tiles_of_rows = tail.q_tile.shape[0]
    shift = jnp.asarray(items.shift)
    shift = jnp.pad(shift if shift.ndim == 2 else shift[:, None], ((0, 1), (0, 0)))
    used = None
    if items.used is not None:
        used = tile_schedule.tile_rows(jnp.asarray(items.used), repeats, tiles.rows)[jnp.asarray(items.segment)]
        used = jnp.concatenate([used, jnp.ones_like(used[:1])])
    schedule = _with_tail(items, tail, tiles_of_rows, reads_tail)
    return ItemPlan(schedule, shift, used, kernel, repeats, tiles, tiles_of_rows)


def _with_tail(
    items: SegmentItems, tail: TileSchedule, tiles_of_rows: int, reads_tail: jax.Array | None
) -> TileSchedule:
    """Every tile of rows takes every item, then its part of the tail. Tiles of q: segment by segment, the tail's last.

    The tiles of rows of one item are neighbours, so that its keys are still in a cache for the second; where several items
    share a program, its items are neighbours, and the tail belongs to the last program.
    """
    segments, streams = len(items.shift), len(items.item_start)
    rows, tile = tail.row_start.shape[-1], jnp.arange(tiles_of_rows, dtype=jnp.int32)
    active = (tail.row_end > tail.row_start).any(axis=(0, 2))
    if reads_tail is not None:
        ends = ("item_end", "item_start"), ("unmasked_end", "unmasked_start"), ("row_end", "row_start")
        empty = {end: jnp.where(reads_tail, getattr(tail, end), getattr(tail, start)) for end, start in ends}
        tail = tail._replace(**empty)
    first = items.first_item

    def ordered(table: jax.Array) -> jax.Array:
        """[..., I + 1, tiles] → [..., items of the schedule]."""
        table = table if first is None else jnp.swapaxes(table, -1, -2)
        return table.reshape(*table.shape[:-2], -1)

    def bounds(of_items: jax.Array | np.ndarray, of_tail: jax.Array) -> jax.Array:
        """Of items [S, I] and of the tail [1, tiles] → [S + 1, (I + 1) · tiles]."""
        spread = jnp.where(active, jnp.asarray(of_items, jnp.int32)[..., None], 0)
        spread = jnp.pad(spread, ((0, 1), (0, 0), (0, 0)))
        of_tail = jnp.pad(of_tail, ((streams, 0), (0, 0)))
        return ordered(jnp.concatenate([spread, of_tail[:, None]], axis=1))

    def row_bounds(everywhere: int, of_tail: jax.Array) -> jax.Array:
        """In the streams every row sees all of an item; in the tail each sees its own range."""
        anywhere = jnp.full((streams, (segments + 1) * tiles_of_rows, rows), everywhere, jnp.int32)
        return jnp.concatenate([anywhere, jnp.pad(of_tail, ((0, 0), (segments * tiles_of_rows, 0), (0, 0)))])

    segment = jnp.append(jnp.asarray(items.segment), segments)
    if first is not None:
        count = len(segment)
        starts = (tile[:, None] * count + jnp.asarray(first)[:-1]).reshape(-1)
        first = jnp.append(starts, tiles_of_rows * count).astype(jnp.int32)
    return TileSchedule(
        q_tile=ordered(segment[:, None] * tiles_of_rows + tile).astype(jnp.int32),
        item_start=bounds(items.item_start, tail.item_start),
        item_end=bounds(items.item_end, tail.item_end),
        unmasked_start=bounds(items.item_start, tail.unmasked_start),
        unmasked_end=bounds(items.item_end, tail.unmasked_end),
        row_start=row_bounds(0, tail.row_start),
        row_end=row_bounds(EVERYTHING, tail.row_end),
        first_item=first,
    )
