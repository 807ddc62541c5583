"""What questions read of a memory: its dense level, its sparse level, or some chunks of each.

The reference attends to whole streams, and so a mixture is assembled for it. Kernels read any mixture as
runs of the memory's own streams, in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import decode as in_place
from pallas_kernels.attention import Kernel, KVCache
from vxl2_jax.buckets import bucket
from vxl2_jax.cache import plan as cache_plan
from vxl2_jax.decode import KVCacheView
from vxl2_jax.layout import Layout
from vxl2_jax.memory import VideoMemory
from vxl2_jax.prefill import DenseCache
from vxl2_jax.storage.memory_file import StoredLevel

MAX_BATCH = 16
"""Questions of a batch at most: with 7 query heads a key head, one token of each fills a tile of 128 rows."""
STEP_ROWS, QUESTION_ROWS = 7, 64 * 7
"""Rows of a usual step and of a usual question of 64 tokens, with 7 query heads a key head. They only set how
coarsely items are cut."""
MAX_ASSEMBLED_BYTES = 1 << 29


def max_batch(memory: VideoMemory, kernel: Kernel, slots: int) -> int:
    """How many questions with mixtures of their own, of up to so many slots, to ask together: a power of two, at most
    `MAX_BATCH`.

    Kernels read mixtures in place. For the reference each is assembled, and together they may take half a GiB; one is
    always allowed.
    """
    most = MAX_BATCH
    if kernel.name == "reference":
        slots = bucket(slots, minimum=128)
        a_slot = sum(part.nbytes // part.shape[2] for part in memory.sparse)
        while most > 1 and most * slots * a_slot > MAX_ASSEMBLED_BYTES:
            most //= 2
    return most


def sparse_view(memory: VideoMemory, kernel: Kernel, questions: int = 1) -> KVCacheView:
    """The whole sparse level, shared by `questions`: a cheap view of the whole video."""
    return _whole((memory.sparse,), [memory.sparse_length], memory.sparse_length, kernel, questions)


def prefix_view(memory: VideoMemory, kernel: Kernel, questions: int = 1) -> KVCacheView:
    """Only what comes before the video: questions by themselves."""
    return _whole((memory.sparse,), [memory.layout.prefix], memory.layout.prefix, kernel, questions)


def dense_view(memory: VideoMemory, kernel: Kernel, questions: int = 1) -> KVCacheView:
    """The whole dense level, shared by `questions`."""
    layout, memory = memory.layout, memory.resident()
    lengths = [layout.visual_length, layout.global_length]
    return _whole(tuple(memory.dense), lengths, layout.length, kernel, questions)


def mixed_view(
    memory: VideoMemory, chunk_size: int, dense: np.ndarray, kernel: Kernel, interior: int = 0
) -> KVCacheView:
    """For each question its chunks `dense` of the dense level, the others of the sparse one.

    Shapes depend on how many chunks but first and last a question has dense at most; those of `interior` chunks serve
    every question that has no more.

    Shapes: dense bool [B, chunks + 1], or [chunks + 1] for one question; 0 is the prefix. Prefix, first and last chunk
    are dense for every question; a row without them is no question: it reads nothing, and fills a batch up.
    """
    dense = np.atleast_2d(dense)
    plan = cache_plan.plan_mixed if kernel.name == "reference" else cache_plan.plan_runs
    plans = [plan(memory.layout, memory.compression, chunk_size, row) if row[0] else None for row in dense]
    levels = memory.dense
    if isinstance(levels, StoredLevel):
        groups = np.flatnonzero(groups_read(memory.layout, chunk_size, dense))
        levels = fetched(levels, groups)
        plans = [found and cache_plan.compacted(found, memory.layout, groups) for found in plans]
    streams = (*levels, memory.sparse)
    if kernel.name == "reference":
        least = cache_plan.mixed_length(memory.layout, memory.compression, chunk_size, interior) if interior else 0
        return assembled(streams, plans, memory.rope_theta, least)
    interior = max(interior, int(dense[:, 2:-1].sum(axis=1).max(initial=0)))
    return in_runs(streams, plans, interior, kernel)


def fetched(level: StoredLevel, groups: np.ndarray) -> DenseCache:
    """The prefix and some groups of a level on disk, on the device: behind each other, in rooms that are rounded up."""

    def put(part: np.ndarray) -> jax.Array:
        room = bucket(part.shape[2], minimum=128)
        return jnp.asarray(np.pad(part, ((0, 0), (0, 0), (0, room - part.shape[2]), (0, 0))))

    return jax.tree.map(put, level.gather(groups))


def groups_read(layout: Layout, chunk_size: int, dense: np.ndarray) -> np.ndarray:
    """bool [G]: the groups that any of the questions reads from the dense level; `dense` as in `mixed_view`."""
    return np.atleast_2d(dense).any(axis=0)[layout.chunk_of_group(chunk_size)]


def assembled(
    streams: tuple[KVCache, ...], plans: Sequence[cache_plan.MixedPlan | None], rope_theta: float, least: int = 0
) -> KVCacheView:
    """Mixtures of the streams (visual, global, sparse), gathered, with room for `least` slots. A plan of None reads
    nothing."""
    nothing = cache_plan.MixedPlan(*np.zeros((3, 0), np.int32))
    plans = [plan or nothing for plan in plans]
    lengths = np.asarray([len(plan.store) for plan in plans], np.int32)
    cache = cache_plan.gather(streams, plans, rope_theta, least)
    return KVCacheView((cache,), *((lengths, lengths[0]) if len(plans) == 1 else (lengths[None], lengths)))


def in_runs(
    streams: tuple[KVCache, ...], each: Sequence[in_place.Segments | None], interior: int, kernel: Kernel
) -> KVCacheView:
    """Mixtures of the streams (visual, global, sparse) in place. Runs of None read nothing.

    `interior`: how many chunks but first and last a question has dense at most. Shapes depend on it, on the number of
    questions and on the streams, not on which chunks they are.
    """
    # A question's dense chunks leave one stretch more of sparse ones than there are of them; both ends are dense.
    room, count = bucket(2 * interior + 3), len(each)
    nothing = in_place.Segments(*np.zeros((2, len(streams), 0), np.int32), np.zeros(0, np.int32))
    each = [runs or nothing for runs in each]
    lengths = np.asarray([(runs.stop - runs.start).sum() for runs in each], np.int32)
    if count == 1:
        return _in_place(streams, each[0], room, lengths[0], kernel)
    heads = streams[0].k.shape[1]
    # A chunk that only some have dense is a run of the dense level, one of the sparse, and ends another.
    shared = bucket(3 * count * interior + 3)
    fine = in_place.split_segments(
        in_place.merge_segments(each), items=in_place.item_count(kernel, heads, shared, count * STEP_ROWS), room=shared
    )
    items = in_place.item_count(kernel, heads, room, QUESTION_ROWS)
    coarse = [in_place.split_segments(runs, items=items, room=room) for runs in each]
    stacked = in_place.WorkItems(*(np.stack(part) for part in list(zip(*coarse, strict=True))[:4]))
    return KVCacheView(streams, None, lengths, (fine, stacked))


def _whole(
    streams: tuple[KVCache, ...], lengths: list[int], position: int, kernel: Kernel, questions: int
) -> KVCacheView:
    if kernel.name == "reference":
        return KVCacheView(streams, np.asarray(lengths, np.int32), np.int32(position))
    stop = np.asarray(lengths, np.int32)[:, None]
    runs = in_place.Segments(np.zeros_like(stop), stop, np.zeros(1, np.int32))
    return _in_place(streams, runs, 1, position, kernel, questions)


def _in_place(
    streams: tuple[KVCache, ...], runs: in_place.Segments, room: int, position: int, kernel: Kernel, questions: int = 1
) -> KVCacheView:
    """Runs that all questions share."""
    count = partial(in_place.item_count, kernel, streams[0].k.shape[1], room)
    cut = partial(in_place.split_segments, runs, room=room)
    items = tuple(cut(items=count(questions * rows)) for rows in (STEP_ROWS, QUESTION_ROWS))
    return KVCacheView(streams, None, np.int32(position), items)
