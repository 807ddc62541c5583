"""Segments made ready for a kernel: as items or as rows, whichever suits the device (`Kernel.segment_tiles`)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Int

from pallas_kernels.attention.kernel import Kernel
from pallas_kernels.decode.by_items import ItemPlan, item_count, plan_items, program_count
from pallas_kernels.decode.by_rows import RowPlan, SegmentRows, plan_rows, segment_rows
from pallas_kernels.decode.segments import SegmentItems, Segments, merge_segments, split_segments
from pallas_kernels.kv_cache import KVCache

STEP_ROWS, QUESTION_ROWS = 7, 64 * 7
"""Rows of a usual decoding step and of a usual question of 64 tokens, with 7 query heads per key head. They only
determine how finely segments are split into items."""

SegmentTable = SegmentItems | tuple[SegmentRows, ...]
"""What one or several kernel calls read; the first axis of every array numbers the calls. A call serves all questions
together, or one question. The kernel decides which of the two forms it is (`Kernel.reads_by_rows`)."""


def segment_tables(
    kernel: Kernel,
    each: Sequence[Segments],
    *,
    levels: Sequence[tuple[int, ...]],
    capacity: int,
    merged_capacity: int,
    kv_heads: int,
    questions: int,
) -> tuple[SegmentTable, SegmentTable]:
    """Tables of a decoding step and of whole questions. Their shapes do not depend on which keys are read.

    Args:
      each: segments of every question, or one for all `questions` alike.
      levels: the streams of each level; a segment reads only one level.
      capacity: the most segments of a question; merged_capacity: of all of them, split at the boundaries of all.
      kv_heads: key heads K.
    """
    if kernel.reads_by_rows:
        rows = jax.tree.map(lambda a: a[None], segment_rows(each, levels, capacity))
        return rows, rows

    def split(segments: Segments, capacity: int, rows: int, programs: int | None = None) -> SegmentItems:
        return split_segments(
            segments,
            items=item_count(kernel, kv_heads, capacity, rows, programs=programs),
            capacity=capacity,
            keys=kernel.tiles_for(rows).keys,
            programs=programs,
        )

    # The rows of a step are known. A question may have fewer, and then needs more items than fill the device once.
    step_rows = questions * STEP_ROWS
    programs = program_count(kernel, kv_heads, step_rows)
    if len(each) == 1:
        step = [split(each[0], capacity, step_rows, programs)]
        question = [split(each[0], capacity, questions * QUESTION_ROWS)]
    else:
        step = [split(merge_segments(each), merged_capacity, step_rows, programs)]
        # Whole questions are called one after another: their queries, once per segment, would be large together.
        question = [split(segments, capacity, QUESTION_ROWS) for segments in each]
    return _stack(step), _stack(question)


def _stack(tables: Sequence[SegmentItems]) -> SegmentItems:
    return jax.tree.map(lambda *parts: np.stack(parts), *tables)


def plan_reads(
    kernel: Kernel,
    table: SegmentTable,
    tail_start: Int[ArrayLike, "calls B N"],
    tail_end: Int[ArrayLike, "calls B N"],
    *,
    heads: int,
    streams: Sequence[KVCache],
    reads_tail: jax.Array | None = None,
) -> ItemPlan | RowPlan:
    """Plan each call of a table; see `by_items.plan_items` and `by_rows.plan_rows`. All arrays have a leading axis.

    reads_tail: a bool, whether this device reads the tail, of which each of several devices has a copy; None: it does.
    """

    def plan(table: SegmentTable, start: jax.Array, end: jax.Array) -> ItemPlan | RowPlan:
        if isinstance(table, SegmentItems):
            return plan_items(kernel, table, start, end, repeats=heads // streams[0].k.shape[1], reads_tail=reads_tail)
        return plan_rows(kernel, table, start, end, heads=heads, streams=streams, reads_tail=reads_tail)

    return jax.vmap(plan)(jax.tree.map(jnp.asarray, table), jnp.asarray(tail_start), jnp.asarray(tail_end))
