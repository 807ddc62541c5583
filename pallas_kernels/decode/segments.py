"""A cache as runs: contiguous pieces of a few streams, each with a shift of its positions.

In a bi-level memory each chunk of a video is read dense or pooled, and positions are counted anew. Both
levels keep their keys rotated, rotations compose, and so over every stretch of equally loaded chunks the
new positions differ from the old by one constant: a dozen runs say all there is to say, and nothing moves.

Many questions over one memory each have runs of their own. Cut at the borders of all of them, every piece is read
once for all questions: each has its own shift for it, or does not ask for it at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Segments(NamedTuple):
    """R runs of S streams: the keys start ≤ index < stop of each stream (often of one alone), read as if `shift`
    positions further on. int32 start, stop [S, R].

    For one question, or for all alike: shift int32 [R], asked None. For B questions: shift int32 [R, B] and asked bool
    [R, B], whether each of them reads the run.
    """

    start: np.ndarray
    item_end: np.ndarray
    shift: np.ndarray
    asked: np.ndarray | None = None


class WorkItems(NamedTuple):
    """The runs cut into I items of like size, for kernels. int32.

    run [I]: which run; first, stop [S, I]: its keys; shift, asked: of the runs, unused ones too. Shapes depend on
    numbers of streams, items, runs and questions alone.
    """

    run: np.ndarray
    item_start: np.ndarray
    item_end: np.ndarray
    shift: np.ndarray
    asked: np.ndarray | None = None


def merge_segments(each: Sequence[Segments]) -> Segments:
    """The runs of B questions (shift [R'] each, of the same S streams), cut so that every key is in one run at most."""
    streams = len(each[0].start)
    ranges: dict[tuple, np.ndarray] = {}
    for stream in range(streams):
        held = [(runs.start[stream], runs.item_end[stream]) for runs in each]
        borders = np.unique(
            np.concatenate([bound[start < item_end] for start, item_end in held for bound in (start, item_end)])
        )
        reading = np.asarray([_covering(start, item_end, borders[:-1]) for start, item_end in held]).T
        seen: dict[tuple, int] = {}
        for place, key in enumerate(map(tuple, reading.tolist())):
            if max(key) >= 0:
                # Streams whose keys the same runs of the same questions hold are read as one.
                seen[key] = seen.get(key, 0) + 1
                bounds = ranges.setdefault((key, seen[key]), np.zeros((2, streams), np.int32))
                bounds[:, stream] = borders[place : place + 2]
    run = np.asarray([key for key, _ in ranges], int).reshape(-1, len(each))
    asked = run >= 0
    shift = [np.append(runs.shift, 0)[number] for runs, number in zip(each, run.T, strict=True)]
    start, item_end = np.asarray([*ranges.values()], np.int32).reshape(-1, 2, streams).transpose(1, 2, 0)
    return Segments(start, item_end, np.stack(shift, axis=1).astype(np.int32), asked)


def _covering(start: np.ndarray, item_end: np.ndarray, at: np.ndarray) -> np.ndarray:
    """For each index, the number of the range that holds it; −1 where none does."""
    holds = (start[:, None] <= at) & (at < item_end[:, None])
    return np.max(np.where(holds, np.arange(len(start))[:, None], -1), axis=0, initial=-1)


def split_segments(runs: Segments, *, items: int, room: int, multiple: int = 64) -> WorkItems:
    """Cut runs into at most `items` items of like size (the last of a run may be shorter).

    `room`: how many runs there may be, so that caches with fewer share an executable. Items keep to
    multiples of `multiple` keys. Raises ValueError for more runs than `room`, or fewer items than that.
    """
    each = runs.item_end - runs.start
    length = each.sum(axis=0)
    if len(length) > room or room > items:
        raise ValueError(f"{len(length)} runs do not fit in a room of {room} and {items} items")
    # Every run wastes less than an item, so this many keys an item are enough.
    spare = max(items - len(length), 1)
    size = max(-(-int(length.sum()) // (spare * multiple)), 1) * multiple
    count = -(-length // size)
    run = np.repeat(np.arange(len(length)), count)
    piece = np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
    # Each stream of a run is shared out among its items alike.
    share = -(-each // np.maximum(count * multiple, 1)) * multiple
    item_start = np.minimum(runs.start[:, run] + piece * share[:, run], runs.item_end[:, run])
    item_end = np.minimum(item_start + share[:, run], runs.item_end[:, run])

    def fill(a, length, axis=0):
        return np.pad(a, [(0, (n == axis) * (length - a.shape[axis])) for n in range(a.ndim)])

    def table(a):
        return fill(a, items, axis=1).astype(np.int32)

    asked = None if runs.asked is None else fill(runs.asked, room)
    return WorkItems(
        fill(run, items).astype(np.int32),
        table(item_start),
        table(item_end),
        fill(runs.shift, room).astype(np.int32),
        asked,
    )
