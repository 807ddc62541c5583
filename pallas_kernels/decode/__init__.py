"""Attention over a bi-level cache in place: nothing is copied, whichever chunks a question reads dense."""

from pallas_kernels.decode.by_items import ItemPlan, item_count, plan_items
from pallas_kernels.decode.by_rows import RowPlan, SegmentRows, plan_rows
from pallas_kernels.decode.planning import QUESTION_ROWS, STEP_ROWS, SegmentTable, plan_reads, segment_tables
from pallas_kernels.decode.segments import SegmentItems, Segments, merge_segments, no_segments, split_segments

__all__ = [
    "QUESTION_ROWS",
    "STEP_ROWS",
    "ItemPlan",
    "RowPlan",
    "SegmentRows",
    "Segments",
    "SegmentTable",
    "SegmentItems",
    "item_count",
    "merge_segments",
    "no_segments",
    "plan_items",
    "plan_rows",
    "plan_reads",
    "segment_tables",
    "split_segments",
]
