"""A cache described as segments: contiguous key ranges of a few streams, each with a position shift.

In a bi-level memory each chunk of a video is read dense or pooled, and positions are renumbered. Both levels store their
keys rotated, and rotations compose, so over every stretch of equally loaded chunks the new positions differ from the
old ones by one constant. A dozen segments therefore describe the whole cache, and no key is rotated again: the query
is rotated the opposite way instead (`by_items`, `by_rows`).

In a batch every question has segments of its own. Split at the boundaries of all of them, each piece is read once for
all questions: each question has its own shift for the piece, or does not use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Segments(NamedTuple):
    """R segments of S streams: the keys k_start ≤ index < k_end of each stream (often of only one), read as if they
    were `shift` positions further on.

    int32 k_start, k_end [S, R]. For one question, or where all questions read the same: shift int32 [R], used None.
    For B questions: shift int32 [R, B], and used bool [R, B], whether each question reads the segment.
    """

    k_start: np.ndarray
    k_end: np.ndarray
    shift: np.ndarray
    used: np.ndarray | None = None

    @property
    def length(self) -> int:
        """Keys of all segments."""
        return int((self.k_end - self.k_start).sum())


def no_segments(streams: int) -> Segments:
    """The segments of a question that reads nothing."""
    empty = np.zeros((streams, 0), np.int32)
    return Segments(empty, empty, np.zeros(0, np.int32))


class SegmentItems(NamedTuple):
    """Segments split into I items of similar size, for kernels. int32.

    segment [I]: the segment of each item; item_start, item_end [S, I]: its keys; shift [R] or [R, B], and used [R, B]: of
    each segment, see `Segments`. R is a capacity: no item belongs to the segments past the real ones, which are zeros.
    The shapes depend only on the numbers of streams, items, segments and questions. Tables of several calls are stacked
    along a leading axis.
    """

    segment: np.ndarray
    item_start: np.ndarray
    item_end: np.ndarray
    shift: np.ndarray
    used: np.ndarray | None = None


def merge_segments(each: Sequence[Segments]) -> Segments:
    """The segments of B questions (shift [R'] each), split so that every key is in at most one segment."""
    streams = len(each[0].k_start)
    ranges: dict[tuple, np.ndarray] = {}
    for stream in range(streams):
        held = [(segments.k_start[stream], segments.k_end[stream]) for segments in each]
        borders = np.unique(np.concatenate([bound[start < end] for start, end in held for bound in (start, end)]))
        reading = np.asarray([_covering(start, end, borders[:-1]) for start, end in held]).T
        seen: dict[tuple, int] = {}
        for place, key in enumerate(map(tuple, reading.tolist())):
            if max(key) >= 0:
                # Keys of several streams that belong to the same segments of the same questions are read together.
                seen[key] = seen.get(key, 0) + 1
                bounds = ranges.setdefault((key, seen[key]), np.zeros((2, streams), np.int32))
                bounds[:, stream] = borders[place : place + 2]
    segment = np.asarray([key for key, _ in ranges], int).reshape(-1, len(each))
    shift = [np.append(segments.shift, 0)[number] for segments, number in zip(each, segment.T, strict=True)]
    k_start, k_end = np.asarray([*ranges.values()], np.int32).reshape(-1, 2, streams).transpose(1, 2, 0)
    return Segments(k_start, k_end, np.stack(shift, axis=1).astype(np.int32), segment >= 0)


def _covering(start: np.ndarray, end: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The number of the range that holds each index; −1 where none does."""
    holds = (start[:, None] <= at) & (at < end[:, None])
    return np.max(np.where(holds, np.arange(len(start))[:, None], -1), axis=0, initial=-1)


def split_segments(segments: Segments, *, items: int, capacity: int, multiple: int = 64) -> SegmentItems:
    """Split segments into at most `items` items of similar size (the last one of a segment may be shorter).

    Args:
      capacity: how many segments the tables have, so that caches with fewer share an executable.
      multiple: items start at multiples of so many keys from the start of their segment.

    Raises:
      ValueError: more segments than `capacity`, or fewer items than that.
    """
    each = segments.k_end - segments.k_start
    length = each.sum(axis=0)
    if len(length) > capacity or capacity > items:
        raise ValueError(f"{len(length)} segments do not fit into a capacity of {capacity} and {items} items")
    # Every segment wastes less than an item, so items of this size are few enough.
    extra = max(items - len(length), 1)
    size = max(-(-int(length.sum()) // (extra * multiple)), 1) * multiple
    count = -(-length // size)
    segment = np.repeat(np.arange(len(length)), count)
    piece = np.arange(len(segment)) - np.repeat(np.cumsum(count) - count, count)
    # Each stream of a segment is divided evenly among the segment's items.
    share = -(-each // np.maximum(count * multiple, 1)) * multiple
    item_start = np.minimum(segments.k_start[:, segment] + piece * share[:, segment], segments.k_end[:, segment])
    item_end = np.minimum(item_start + share[:, segment], segments.k_end[:, segment])

    def fill(a: np.ndarray, length: int, axis: int = 0) -> np.ndarray:
        return np.pad(a, [(0, (n == axis) * (length - a.shape[axis])) for n in range(a.ndim)])

    return SegmentItems(
        fill(segment, items).astype(np.int32),
        fill(item_start, items, axis=1).astype(np.int32),
        fill(item_end, items, axis=1).astype(np.int32),
        fill(segments.shift, capacity).astype(np.int32),
        None if segments.used is None else fill(segments.used, capacity),
    )
