"""Attention over segments in place, by rows: every token is a row of its own for each segment that it reads.

As in `by_items`, the shift of a segment is put on the query. Here the rows of all segments are sorted by the keys that
they read, so that the rows of a tile read neighbouring keys, and one call of range attention serves all questions. A
token's rows are then merged by log-sum-exp. No row is computed in vain, but keys may be read several times. This is
for devices that compute for longer than they wait for their memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

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

_STREAM = 2**26  # more than the slots of any stream
_LAST = 2**30


class SegmentRows(NamedTuple):
    """The segments of B questions, or of all questions alike (B = 1), padded to R segments. int32.

    k_start, k_end [S, B, R]; shift [B, R]. Tables of several independent calls are stacked along a leading axis.
    """

    k_start: np.ndarray
    k_end: np.ndarray
    shift: np.ndarray


def segment_rows(each: Sequence[Segments], capacity: int) -> SegmentRows:
    """Stack the segments of questions; `capacity`: R."""

    def stack(tables: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, capacity - a.shape[-1])]) for a in tables], axis=-2)

    k_start, k_end, shift = (stack([s[field] for s in each]).astype(np.int32) for field in range(3))
    return SegmentRows(k_start, k_end, shift)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("shift", "query", "place", "attention"),
    meta_fields=("segments",),
)
@dataclass(frozen=True)
class RowPlan:
    """What queries read, prepared once and used in every layer: a pytree. M = B · N · (R + 1) rows, sorted.

    shift, query int32 [M]: of each row; place int32 [R + 1, B · N]: where the rows of each query are.
    """

    shift: jax.Array
    query: jax.Array
    place: jax.Array
    attention: AttentionPlan
    segments: int

    def positions(self, positions: Int[Array, "B N"]) -> Int[Array, " M"]:
        """The positions at which the rows of `rows` must be rotated, from those of the queries."""
        return positions.reshape(-1)[self.query] - self.shift

    def rows(self, q: Float[Array, "B N H D"]) -> Float[Array, "M H D"]:
        """The query of every row, before rotation."""
        return q.reshape(-1, *q.shape[2:])[self.query]

    def attend(
        self, rows: Float[Array, "M H D"], streams: Sequence[KVCache], *, layer: Int[Array, ""] | int = 0
    ) -> tuple[Float[Array, "BN H D"], Float[Array, "BN H"]]:
        """Attention of rotated rows over the streams, the tail last. Returns out and the natural log-sum-exp (fp32)."""
        out, lse = dispatch.attend(rows, streams, self.attention, layer=layer)
        merged, lse = tile_schedule.merge_partials(out[self.place], lse[self.place], axis=0)
        return merged.astype(rows.dtype), lse


def plan_rows(
    kernel: Kernel,
    table: SegmentRows,
    tail_start: Int[ArrayLike, "B N"],
    tail_end: Int[ArrayLike, "B N"],
    *,
    heads: int,
    streams: Sequence[KVCache],
) -> RowPlan:
    """Plan B questions of N tokens that see their segments, and the keys tail_start ≤ index < tail_end of the tail.

    A token that sees nothing of the tail is padding and reads nothing. streams: the caches, the tail last, of which
    only the shapes are used.
    """
    questions, count = jnp.shape(tail_start)
    segments = table.shift.shape[-1]
    real = jnp.asarray(tail_end) > jnp.asarray(tail_start)

    def of_rows(of_segments: jax.Array, of_tail: jax.Array) -> jax.Array:
        """Segments [S, 1 or B, R] and tail [B, N] → [S + 1, R + 1, B · N], zero where nothing is read."""
        spread = jnp.swapaxes(jnp.asarray(of_segments), 1, 2)[..., None]
        spread = jnp.where(real, jnp.broadcast_to(spread, (len(of_segments), segments, questions, count)), 0)
        spread = jnp.pad(spread, ((0, 1), (0, 1), (0, 0), (0, 0)))
        return spread.at[-1, -1].set(of_tail).reshape(len(spread), segments + 1, -1)

    k_start, k_end = of_rows(table.k_start, tail_start), of_rows(table.k_end, tail_end)
    shift = jnp.pad(jnp.asarray(table.shift).T, ((0, 1), (0, 0)))
    shift = jnp.broadcast_to(shift[..., None], (segments + 1, questions, count)).reshape(-1)
    k_start, k_end = (bound.reshape(len(streams), -1) for bound in (k_start, k_end))
    # Rows that read the same stream come together, in the order of their keys; rows that read nothing come last.
    reads = k_end > k_start
    stream = jnp.argmax(reads, axis=0)
    first = jnp.take_along_axis(k_start, stream[None], axis=0)[0]
    order = jnp.argsort(jnp.where(reads.any(axis=0), stream * _STREAM + first, _LAST))
    tiles = kernel.segment_tiles_for(len(order) * heads // streams[0].k.shape[1])
    attention = dispatch.plan_attention(
        kernel, k_start[:, order], k_end[:, order], heads=heads, streams=streams, tiles=tiles
    )
    query = order % (questions * count)
    place = jnp.argsort(order).reshape(segments + 1, -1)
    return RowPlan(shift[order], query, place, attention, segments)
