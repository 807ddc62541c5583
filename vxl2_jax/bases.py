"""What a question reads of a memory: its dense level, its sparse level, or some chunks of each.

The reference attends to whole streams, and so a mixture is assembled for it. Kernels read any mixture as
runs of the memory's own streams, in place.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from pallas_kernels import decode as in_place
from pallas_kernels.attention import Kernel, Stream
from vxl2_jax import mixed
from vxl2_jax.buckets import bucket
from vxl2_jax.decode import Base
from vxl2_jax.memory import VideoMemory

QUESTION_ROWS = 64 * 7
"""Rows of a usual question: 64 tokens of 7 query heads a key head. It only sets how coarsely its items are cut."""


def sparse_base(memory: VideoMemory, kernel: Kernel) -> Base:
    """The whole sparse level: a cheap view of the whole video."""
    return _whole((memory.sparse,), [memory.sparse_length], memory.sparse_length, kernel)


def dense_base(memory: VideoMemory, kernel: Kernel) -> Base:
    """The whole dense level."""
    layout = memory.layout
    return _whole(tuple(memory.dense), [layout.visual_length, layout.global_length], layout.length, kernel)


def mixed_base(memory: VideoMemory, chunk_size: int, dense: np.ndarray, kernel: Kernel) -> Base:
    """The chunks `dense` (bool [chunks + 1], 0 is the prefix) of the dense level, the others of the sparse one."""
    plan = mixed.plan_mixed(memory.layout, memory.compression, chunk_size, dense)
    length = len(plan.store)
    if kernel.name == "reference":
        return Base((mixed.assemble(memory, plan),), np.asarray([length], np.int32), np.int32(length))
    # Each dense run of chunks is one run of both dense streams; sparse runs lie before, between and behind them.
    room = bucket(3 * int(np.sum(dense)) + 1)
    runs = in_place.gathered(plan.store, plan.index, plan.shift)
    return _in_place((*memory.dense, memory.sparse), runs, room, length, kernel)


def _whole(streams: tuple[Stream, ...], lengths: list[int], position: int, kernel: Kernel) -> Base:
    if kernel.name == "reference":
        return Base(streams, np.asarray(lengths, np.int32), np.int32(position))
    zeros = np.zeros(len(lengths), np.int32)
    runs = in_place.Runs(np.arange(len(lengths), dtype=np.int32), zeros, np.asarray(lengths, np.int32), zeros)
    return _in_place(streams, runs, len(lengths), position, kernel)


def _in_place(streams: tuple[Stream, ...], runs: in_place.Runs, room: int, position: int, kernel: Kernel) -> Base:
    count = partial(in_place.items_of, kernel, streams[0].k.shape[1], room)
    cut = partial(in_place.cut, runs, streams=len(streams), room=room)
    return Base(streams, None, np.int32(position), (cut(items=count()), cut(items=count(QUESTION_ROWS))))
