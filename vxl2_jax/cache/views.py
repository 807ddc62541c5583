"""What questions read of a memory: its dense level, its sparse level, or some chunks of each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from pallas_kernels.attention import Kernel, KVCache
from pallas_kernels.decode import Segments, SegmentTable, no_segments, segment_tables
from pallas_kernels.kv_cache import aligned
from vxl2_jax.buckets import bucket
from vxl2_jax.cache.plan import LEVELS, plan_segments, relocate
from vxl2_jax.memory import VideoMemory
from vxl2_jax.placement import Local, Placement, Readers
from vxl2_jax.prefill import DenseCache
from vxl2_jax.storage.host_level import HostLevel
from vxl2_jax.storage.memory_file import StoredLevel
from vxl2_jax.storage.placed_level import PlacedLevel
from vxl2_jax.tensor_parallel import PerDevice, cache_sharding

MAX_BATCH = 16
"""The most questions of a batch: with 7 query heads per key head, one token of each fills a tile of 128 rows."""


class KVCacheView(NamedTuple):
    """A cache as questions read it, in place: a pytree.

    Attributes:
      streams: caches [L, K, S, D].
      position: that of the first token after the cache, int32 [B], or a scalar where all questions read the same.
      step_table, question_table: the same segments of the streams, divided for two workloads: a decoding step, which has
        one token of each question, and the question pass, which has whole questions. For a sharded video their first axis is
        the device: each reads the keys that it holds.
    """

    streams: tuple[KVCache, ...]
    position: jax.Array | np.ndarray
    step_table: SegmentTable | PerDevice
    question_table: SegmentTable | PerDevice

    @property
    def dtype(self) -> np.dtype:
        """The dtype of keys and values."""
        return np.dtype(self.streams[0].dtype)


def sparse_view(memory: VideoMemory, kernel: Kernel, questions: int = 1) -> KVCacheView:
    """The whole sparse level, a cheap view of the whole video, shared by `questions`."""
    return whole_view((memory.sparse,), [memory.sparse_length], kernel, questions, _sparse_readers(memory))


def prefix_view(memory: VideoMemory, kernel: Kernel, questions: int = 1) -> KVCacheView:
    """Only what precedes the video, shared by `questions`."""
    return whole_view((memory.sparse,), [memory.layout.prefix], kernel, questions, _sparse_readers(memory))


def dense_view(memory: VideoMemory, kernel: Kernel, questions: int = 1) -> KVCacheView:
    """The whole dense level, shared by `questions`."""
    layout, level = memory.layout, memory.dense_on_device()
    lengths, readers = [layout.visual_length, layout.global_length], None
    if isinstance(level, PlacedLevel):
        level, readers = level.streams, Readers(level.placement.devices, _dense_maps(level.placement))
    return whole_view(tuple(level), lengths, kernel, questions, readers)


def _dense_maps(placement: Placement) -> tuple[Local, Local]:
    return placement.visual, placement.share(placement.layout.global_length)


def _sparse_readers(memory: VideoMemory) -> Readers | None:
    placement = memory.placement
    return Readers(placement.devices, (placement.sparse(memory.compression),)) if placement else None


def whole_view(
    streams: tuple[KVCache, ...],
    lengths: Sequence[int],
    kernel: Kernel,
    questions: int = 1,
    readers: Readers | None = None,
) -> KVCacheView:
    """The first `lengths` slots of each stream, shared by `questions`. readers: how several devices share the streams."""
    k_end = np.asarray(lengths, np.int32)[:, None]
    segments = Segments(np.zeros_like(k_end), k_end, np.zeros(1, np.int32))
    return _view(streams, [segments], np.asarray(sum(lengths), np.int32), kernel, questions, readers=readers)


def mixed_view(
    memory: VideoMemory, chunk_size: int, dense: Bool[np.ndarray, "B C1"], kernel: Kernel, interior_capacity: int = 0
) -> KVCacheView:
    """For each question, its chunks `dense` of the dense level and the others of the sparse level.

    Args:
      memory: of a dense level in host memory or on disk, the chunks that are dense are loaded.
      dense: chunk 0 is the prefix. Prefix, first and last chunk are dense for every real question. A row whose prefix is
        not marked is a question that fills up the batch and reads nothing.
      interior_capacity: for how many dense chunks per question, besides first and last, the arrays have room. Shapes, and
        so the compiled programs, depend on this number and not on the chunks. A larger number of dense chunks counts
        instead.
    """
    layout, levels = memory.layout, memory.dense
    each = [plan_segments(layout, memory.compression, chunk_size, row) if row[0] else no_segments(3) for row in dense]
    placement, maps = memory.placement, None
    if isinstance(levels, PlacedLevel):
        maps = _dense_maps(levels.placement)
    elif not isinstance(levels, DenseCache):
        groups = np.flatnonzero(groups_read(memory, chunk_size, dense))
        levels = load_groups(levels, groups, cache_sharding(memory.sparse))
        each = [relocate(segments, layout, groups) for segments in each]
        if placement:  # every device has what was loaded
            maps = tuple(
                placement.share(len(rows)) for rows in (layout.visual_rows(groups), layout.global_rows(groups))
            )
    streams = levels.streams if isinstance(levels, PlacedLevel) else levels
    interior = max(interior_capacity, int(dense[:, 2:-1].sum(axis=1).max(initial=0)))
    position = np.asarray([segments.length for segments in each], np.int32)
    readers = None
    if placement and maps:
        readers = Readers(placement.devices, (*maps, placement.sparse(memory.compression)))
    return _view((*streams, memory.sparse), each, position, kernel, len(each), interior, readers)


def groups_read(memory: VideoMemory, chunk_size: int, dense: Bool[np.ndarray, "B C1"]) -> Bool[np.ndarray, " G"]:
    """The groups that any of the questions reads from the dense level; `dense` as in `mixed_view`."""
    return memory.layout.dense_groups(chunk_size, dense).any(axis=0)


def load_groups(
    level: HostLevel | StoredLevel, groups: Int[np.ndarray, " n"], sharding: jax.sharding.Sharding | None = None
) -> DenseCache:
    """The prefix and some groups of a level in host memory or on disk, on the device or sharded, in caches of rounded
    capacity."""

    def padded(stream: KVCache) -> KVCache:
        return stream.padded(aligned(bucket(stream.slots, minimum=128), stream.dtype))

    return jax.device_put(DenseCache(*map(padded, level.gather(groups))), sharding)


def _view(
    streams: tuple[KVCache, ...],
    each: Sequence[Segments],
    position: np.ndarray,
    kernel: Kernel,
    questions: int,
    interior_capacity: int | None = None,
    readers: Readers | None = None,
) -> KVCacheView:
    """interior_capacity: see `mixed_view`; None: one segment that all questions share. readers: see `whole_view`."""
    capacity = merged = 1
    if interior_capacity is not None:
        # Between dense chunks lie sparse ones, and both ends are dense: one segment more than dense chunks on each side.
        # A chunk that only some questions have dense is a segment of both levels, and splits another one.
        capacity, merged = bucket(2 * interior_capacity + 3), bucket(3 * len(each) * interior_capacity + 3)
    tables = partial(
        segment_tables,
        kernel,
        levels=LEVELS if interior_capacity is not None else (tuple(range(len(streams))),),
        capacity=capacity,
        merged_capacity=merged,
        kv_heads=streams[0].k.shape[1],
        questions=questions,
    )
    if readers is None:
        return KVCacheView(streams, position, *tables(each))
    devices = [
        tables([s._replace(k_start=readers.local(s.k_start, d), k_end=readers.local(s.k_end, d)) for s in each])
        for d in range(readers.devices)
    ]
    step, question = jax.tree.map(lambda *parts: np.stack(parts), *devices)
    return KVCacheView(streams, position, PerDevice(step), PerDevice(question))
