"""Attention over segments in place, by rows: every token is a row of its own for each segment that it reads.

As in `by_items`, the shift of a segment is put on the query. Here the rows of all segments of a level are sorted by the
keys that they read, so that the rows of a tile read neighbouring keys, and one call of range attention per level serves
all questions. A token's rows are then merged by log-sum-exp. Only rows that count are computed, but keys may be read
several times: this is for compute-bound devices, such as CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import dispatch, tile_schedule
from pallas_kernels.attention.dispatch import AttentionPlan
from pallas_kernels.attention.kernel import Kernel
from pallas_kernels.decode.segments import Segments
from pallas_kernels.kv_cache import KVCache

_LAST = 2**30  # sorts rows that read nothing behind all slots of a cache


@partial(jax.tree_util.register_dataclass, data_fields=("k_start", "k_end", "shift"), meta_fields=("streams",))
@dataclass(frozen=True)
class SegmentRows:
    """The segments of one level for B questions, or for all questions alike (B = 1), padded to R segments.

    int32 k_start, k_end [S, B, R]; shift [B, R]. streams: the S streams of the level. Tables of several independent calls
    are stacked along a leading axis.
    """

    k_start: np.ndarray | Any
    k_end: np.ndarray | Any
    shift: np.ndarray | Any
    streams: tuple[int, ...]


def segment_rows(each: Sequence[Segments], levels: Sequence[tuple[int, ...]], capacity: int) -> tuple[SegmentRows, ...]:
    """Stack the segments of questions, level by level. levels: the streams of each level; a segment reads only one level.

    capacity: the most segments of a question; of several levels, none has more than half of them (rounded up).
    """
    capacity = -(-(capacity + len(levels) - 1) // len(levels))
    return tuple(_level_rows(each, streams, capacity) for streams in levels)


def _level_rows(each: Sequence[Segments], streams: tuple[int, ...], capacity: int) -> SegmentRows:
    tables = []
    for segments in each:
        k_start, k_end = segments.k_start[list(streams)], segments.k_end[list(streams)]
        read = (k_end > k_start).any(axis=0)
        parts = (k_start[:, read], k_end[:, read], segments.shift[read])
        tables.append([np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, capacity - a.shape[-1])]) for a in parts])
    k_start, k_end, shift = (np.stack(parts, axis=-2).astype(np.int32) for parts in zip(*tables, strict=True))
    return SegmentRows(k_start, k_end, shift, streams)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("shift", "query", "place", "attention"),
    meta_fields=("streams",),
)
@dataclass(frozen=True)
class SortedRows:
    """One row for each of B · N queries and R segments of a level, or for the tail; M rows, sorted by the keys they read.

    shift, query int32 [M]: the position shift of each row, and its query; place int32 [R, B · N]: the index of the row
    of each segment and query; attention: the plan of the rows; streams: those that they read.
    """

    shift: jax.Array | Any
    query: jax.Array | Any
    place: jax.Array | Any
    attention: AttentionPlan
    streams: tuple[int, ...]


@partial(jax.tree_util.register_dataclass, data_fields=("parts",), meta_fields=())
@dataclass(frozen=True)
class RowPlan:
    """Queries with a row of their own for every segment they read, scheduled once for all layers: a pytree.

    parts: one per level, then one for the tail.
    """

    parts: tuple[SortedRows, ...]

    def positions(self, positions: Int[Array, "B N"]) -> Int[Array, " M"]:
        """The positions to which the rows of `rows` are rotated, from those of the queries: minus their segment's shift."""
        flat = positions.reshape(-1)
        return jnp.concatenate([flat[part.query] - part.shift for part in self.parts])

    def rows(self, q: Float[Array, "B N H D"]) -> Float[Array, "M H D"]:
        """The query of every row of every part, before rotation."""
        return q.reshape(-1, *q.shape[2:])[jnp.concatenate([part.query for part in self.parts])]

    def attend(
        self, rows: Float[Array, "M H D"], streams: Sequence[KVCache], *, layer: Int[Array, ""] | int = 0
    ) -> tuple[Float[Array, "BN H D"], Float[Array, "BN H"]]:
        """Attention of rotated rows over the streams, the tail last. Returns out and the natural log-sum-exp (fp32)."""
        first, partials = 0, []
        for part in self.parts:
            count = len(part.query)
            read = [streams[number] for number in part.streams]
            out, lse = dispatch.attend(rows[first : first + count], read, part.attention, layer=layer)
            partials.append((out[part.place], lse[part.place]))
            first += count
        out, lse = tile_schedule.merge_partials(partials, axis=0)
        return out.astype(rows.dtype), lse


def plan_rows(
    kernel: Kernel,
    levels: Sequence[SegmentRows],
    tail_start: Int[ArrayLike, "B N"],
    tail_end: Int[ArrayLike, "B N"],
    *,
    heads: int,
    streams: Sequence[KVCache],
    reads_tail: jax.Array | None = None,
) -> RowPlan:
    """Plan B questions of N tokens that see their segments, and the keys tail_start ≤ index < tail_end of the tail.

    A token that sees nothing of the tail is padding and reads nothing. streams: the caches, the tail last, of which
    only the shapes are used. reads_tail: see `planning.plan_reads`.
    """
    questions, count = jnp.shape(tail_start)
    repeats = heads // streams[0].k.shape[1]
    real = jnp.asarray(tail_end) > jnp.asarray(tail_start)

    def spread(of_segments: jax.Array | np.ndarray) -> jax.Array:
        """Of segments [..., 1 or B, R] → [..., R, B, N]."""
        moved = jnp.swapaxes(jnp.asarray(of_segments), -1, -2)[..., None]
        return jnp.broadcast_to(moved, (*moved.shape[:-2], questions, count))

    plans = []
    for number, level in enumerate(levels):
        k_start, k_end = (jnp.where(real, spread(bound), 0) for bound in (level.k_start, level.k_end))
        k_start, k_end = (bound.reshape(len(level.streams), -1) for bound in (k_start, k_end))
        segments = level.shift.shape[-1]
        # Rows come in the order of their keys; rows that read nothing come last.
        order = jnp.argsort(jnp.where((k_end > k_start).any(axis=0), k_start[0], _LAST))
        attention = dispatch.plan_attention(
            kernel,
            k_start[:, order],
            k_end[:, order],
            heads=heads,
            streams=[streams[number] for number in level.streams],
            tiles=kernel.segment_tiles_for(
                len(order) * repeats, number if segments > 1 else None, alike=count * repeats
            ),
        )
        place = jnp.argsort(order).reshape(-1, questions * count)
        shift = spread(level.shift).reshape(-1)[order]
        plans.append(SortedRows(shift, order % (questions * count), place, attention, level.streams))
    # In the tail every question reads a part of its own: a tile each, of no more keys than that part has.
    query = jnp.arange(questions * count)
    if reads_tail is not None:
        tail_end = jnp.where(reads_tail, tail_end, tail_start)
    whole = kernel.segment_tiles[0]
    keys = min(whole.keys, max(streams[-1].slots // questions, 1))
    tail = dispatch.plan_attention(
        kernel,
        jnp.ravel(jnp.asarray(tail_start))[None],
        jnp.ravel(jnp.asarray(tail_end))[None],
        heads=heads,
        streams=streams[-1:],
        tiles=replace(whole, rows=count * repeats, keys=keys),
    )
    plans.append(SortedRows(jnp.zeros_like(query), query, query[None], tail, (len(streams) - 1,)))
    return RowPlan(tuple(plans))
