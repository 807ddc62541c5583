"""A cache as runs: contiguous pieces of a few streams, each with a shift of its positions.

In a bi-level memory each chunk of a video is read dense or pooled, and positions are counted anew. Both
levels keep their keys rotated, rotations compose, and so over every stretch of equally loaded chunks the
new positions differ from the old by one constant: a dozen runs say all there is to say, and nothing moves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Runs(NamedTuple):
    """int32 [R] each: keys start ≤ index < stop of a stream, read as if `shift` positions further on."""

    stream: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    shift: np.ndarray


class Items(NamedTuple):
    """The runs cut into I items of like size, for kernels. int32.

    run [I]: which run; first, stop [S, I]: its keys, in the one stream that it reads (empty in the others);
    shift [R]: of the runs, unused ones too. Shapes depend on S, I and R alone.
    """

    run: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    shift: np.ndarray


def gathered(stream: np.ndarray, index: np.ndarray, shift: np.ndarray) -> Runs:
    """The runs of a cache given slot by slot: from which stream, which index there, how far shifted. int32 [M]."""
    order = np.lexsort((index, stream))
    stream, index, shift = (np.asarray(a, np.int32)[order] for a in (stream, index, shift))
    same = (np.diff(stream) == 0) & (np.diff(index) == 1) & (np.diff(shift) == 0)
    first = np.flatnonzero(np.concatenate([[True], ~same]))
    last = np.concatenate([first[1:], [len(index)]]) - 1
    return Runs(stream[first], index[first], index[last] + 1, shift[first])


def cut(runs: Runs, *, streams: int, items: int, room: int, multiple: int = 64) -> Items:
    """Cut runs into at most `items` items of equal size (the last of a run may be shorter).

    `room`: how many runs there may be, so that caches with fewer share an executable. Items keep to
    multiples of `multiple` keys. Raises ValueError for more runs than `room`, or fewer items than that.
    """
    length = runs.stop - runs.start
    if len(length) > room or room > items:
        raise ValueError(f"{len(length)} runs do not fit in a room of {room} and {items} items")
    # Every run wastes less than an item, so this many keys an item are enough.
    spare = max(items - len(length), 1)
    size = max(-(-int(length.sum()) // (spare * multiple)), 1) * multiple
    count = -(-length // size)
    run = np.repeat(np.arange(len(length)), count)
    piece = np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
    first, stop = np.zeros((2, streams, items), np.int32)
    place = runs.stream[run], np.arange(len(run))
    first[place] = runs.start[run] + piece * size
    stop[place] = np.minimum(first[place] + size, runs.stop[run])
    pad = lambda a, length: np.pad(a, (0, length - len(a))).astype(np.int32)
    return Items(pad(run, items), first, stop, pad(runs.shift, room))
