"""A cache described as segments: contiguous key ranges of a few streams, each with a position shift.

In a bi-level memory each chunk of a video is read dense or pooled, and positions are renumbered. Both levels store their
keys rotated, and rotations compose, so over every stretch of equally loaded chunks the new positions differ from the
old ones by one constant. A dozen segments therefore describe the whole cache, and no key is rotated again: the query
is rotated the opposite way instead (`by_items`, `by_rows`).

In a batch every question has segments of its own. Split at the boundaries of all of them, each piece is read once for
all questions: each question has its own shift for the piece, or does not use it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_ALIGNMENT = 16
"""Tiles begin at multiples of it: kernels copy keys from multiples of 8 (Hopper) or 16 (TPU) on."""


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
    """Segments split into I items, for kernels. int32.

    segment [I]: the segment of each item; item_start, item_end [S, I]: its keys; shift [R] or [R, B], and used [R, B]: of
    each segment, see `Segments`. R is a capacity: no item belongs to the segments past the real ones, which are zeros.
    first_item [P + 1]: the items first_item[p] ≤ index < first_item[p + 1] are for program p; None: one program each.
    The shapes depend only on the numbers of streams, items, segments, questions and programs. Tables of several calls are
    stacked along a leading axis.
    """

    segment: np.ndarray
    item_start: np.ndarray
    item_end: np.ndarray
    shift: np.ndarray
    used: np.ndarray | None = None
    first_item: np.ndarray | None = None


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


def split_segments(
    segments: Segments, *, items: int, capacity: int, keys: int = 64, programs: int | None = None
) -> SegmentItems:
    """Split segments into at most `items` items, at multiples of a key tile.

    Args:
      capacity: how many segments the tables have, so that caches with fewer share an executable.
      keys: of a key tile. An item ends with a whole tile, or with its segment.
      programs: None: items of similar size, the last one of a segment may be shorter. Otherwise the tiles of all segments,
        one after another, are cut into as many equal shares, of which the last has a tile less, for the tail; an item is
        what a share has of a segment, and `first_item` says which items a share has. Needs capacity + programs items.

    Raises:
      ValueError: more segments than `capacity`, or fewer items than needed.
    """
    length = (segments.k_end - segments.k_start).sum(axis=0)
    if len(length) > capacity or capacity + (programs or 0) > items:
        raise ValueError(f"{len(length)} segments do not fit into a capacity of {capacity} and {items} items")
    origin = segments.k_start // (align := math.gcd(keys, _ALIGNMENT)) * align
    tiles = np.where(segments.k_end > segments.k_start, -(-(segments.k_end - origin) // keys), 0)  # [S, R]
    each = tiles.sum(axis=0)
    before = np.cumsum(each) - each
    share = -(-(each.sum() + 1) // programs) if programs else 0
    if programs:
        cuts = np.unique(np.concatenate([before, np.arange(0, each.sum(), share)]))
    else:
        # Every segment wastes less than an item, so items of this size are few enough.
        size = max(-(-int(each.sum()) // max(items - len(length), 1)), 1)
        count = -(-each // size)
        place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        cuts = np.repeat(before, count) + place * np.repeat(each, count) // np.maximum(np.repeat(count, count), 1)
    cuts = cuts[cuts < each.sum()]
    segment = np.searchsorted(np.cumsum(each), cuts, side="right")
    # The tiles of a segment lie stream by stream: those of an item are a range of each.
    offset = before[segment] + (np.cumsum(tiles, axis=0) - tiles)[:, segment]
    first, last = (np.clip(at - offset, 0, tiles[:, segment]) for at in (cuts, np.append(cuts[1:], each.sum())))
    k_start, k_end, origin = (a[:, segment] for a in (segments.k_start, segments.k_end, origin))
    item_start = np.clip(origin + first * keys, k_start, k_end)
    item_end = np.where(last > first, np.minimum(origin + last * keys, k_end), item_start)
    order, first_item = np.arange(items), None
    if programs:
        # Empty items are spread over the programs, so that none has many.
        owner = np.concatenate([cuts // share, np.arange(items - len(cuts)) % programs])
        order = np.argsort(owner, kind="stable")
        first_item = np.searchsorted(owner[order], np.arange(programs + 1)).astype(np.int32)

    def fill(a: np.ndarray, length: int, axis: int = 0) -> np.ndarray:
        return np.pad(a, [(0, (n == axis) * (length - a.shape[axis])) for n in range(a.ndim)])

    return SegmentItems(
        fill(segment, items)[order].astype(np.int32),
        fill(item_start, items, axis=1)[:, order].astype(np.int32),
        fill(item_end, items, axis=1)[:, order].astype(np.int32),
        fill(segments.shift, capacity).astype(np.int32),
        None if segments.used is None else fill(segments.used, capacity),
        first_item,
    )
