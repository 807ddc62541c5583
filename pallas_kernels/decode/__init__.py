"""Decoding over a bi-level memory without moving it. The assembled cache is the reference."""

from pallas_kernels.decode.in_place import SegmentPlan, attend, item_count, plan_segments
from pallas_kernels.decode.segments import Segments, WorkItems, merge_segments, split_segments

__all__ = [
    "WorkItems",
    "SegmentPlan",
    "Segments",
    "attend",
    "split_segments",
    "item_count",
    "plan_segments",
    "merge_segments",
]
