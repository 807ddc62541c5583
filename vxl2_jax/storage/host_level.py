"""A dense level in host memory, for videos whose keys and values do not fit the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int

from pallas_kernels.attention import KVCache
from vxl2_jax import prefill
from vxl2_jax.layout import Layout
from vxl2_jax.prefill import DenseCache, PrefillShape, Stride
from vxl2_jax.storage.memory_file import CacheShape, StoredLevel, record_groups, rows_of_groups


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class HostLevel:
    """A dense level in host memory: a pytree without leaves. Groups are copied to the device on demand.

    Its arrays are written in place while a video is watched, and never after that.

    Attributes:
      layout: the tokens of the video.
      streams: NumPy arrays [L, K, S, D]. The operating system provides the memory of slots when they are first written.
    """

    layout: Layout
    streams: DenseCache

    @classmethod
    def empty(cls, layout: Layout, shape: CacheShape, sizes: PrefillShape) -> HostLevel:
        """A level without keys and values, for a video of this layout."""
        arrays = jax.eval_shape(lambda: prefill.empty_streams(*shape[:3], sizes, shape.dtype))
        return cls(layout, jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), arrays))

    @classmethod
    def copy_of(cls, level: DenseCache | StoredLevel | HostLevel, layout: Layout, sizes: PrefillShape) -> HostLevel:
        """A copy of a level, with the capacity for a video of this layout that begins as that of the level.

        Raises RequestError if a memory file is damaged.
        """
        if isinstance(level, StoredLevel):
            copy = cls.empty(layout, level.shape, sizes)
            for index, groups in enumerate(record_groups(level.layout)):
                copy._put(level.read_record(index), *groups, level.layout)
            return copy
        streams = level if isinstance(level, DenseCache) else level.streams
        copy = cls.empty(layout, CacheShape.of(streams.visual), sizes)
        for own, other in zip(jax.tree.leaves(copy.streams), jax.tree.leaves(streams), strict=True):
            count = min(own.shape[2], other.shape[2])
            for layer in range(len(own)):  # of what is on a device, no second copy of all layers
                own[layer, :, :count] = np.asarray(other[layer])[:, :count]
        return copy

    @classmethod
    def collect(
        cls, shape: CacheShape, read: Callable[[int, int], DenseCache], layout: Layout, sizes: PrefillShape
    ) -> HostLevel:
        """The level whose groups `first` … `last` − 1 a function reads."""
        level = cls.empty(layout, shape, sizes)
        for groups in record_groups(layout):
            level._put(read(*groups), *groups, layout)
        return level

    @property
    def shape(self) -> CacheShape:
        """Shape and dtype of the caches."""
        return CacheShape.of(self.streams.visual)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of the video."""
        return self.shape.bytes(self.layout.length)

    def gather(self, groups: Int[np.ndarray, " n"]) -> DenseCache:
        """The rows of the prefix and of some groups (ascending), as `StoredLevel.gather`: a copy."""
        rows = self.layout.visual_rows(groups), self.layout.global_rows(groups)
        return DenseCache(
            *(jax.tree.map(lambda a, at=at: a[:, :, at], s) for s, at in zip(self.streams, rows, strict=True))
        )

    def read_groups(self, first: int, last: int) -> DenseCache:
        """The rows of the groups `first` … `last` − 1, with the prefix if `first` is 0: not a copy."""
        ranges = rows_of_groups(self.layout, first, last)
        return DenseCache(
            *(jax.tree.map(lambda a, at=at: a[:, :, slice(*at)], s) for s, at in zip(self.streams, ranges, strict=True))
        )

    def read_layer(self, layer: int, lengths: tuple[int, int], piece: int) -> Iterator[tuple[int, int, KVCache]]:
        """The first `lengths` slots of both streams in one layer, in pieces of `piece` slots (or all, if there are fewer).

        Yields (the stream's number, the first slot, a cache [1, K, slots, D] that is not a copy).
        """
        for number, (stream, length) in enumerate(zip(self.streams, lengths, strict=True)):
            size = min(piece, stream.slots)
            for start in range(0, length, size):
                begin = min(start, stream.slots - size)  # all pieces have one static shape
                rows = jax.tree.map(lambda a, b=begin, n=size: a[layer : layer + 1, :, b : b + n], stream)
                yield number, begin, rows

    def write_layer(self, layer: int, rows: DenseCache, stride: Stride) -> None:
        """Write what a stride adds to one layer: caches [1, K, rows, D], copied from the device."""
        for stream, new, start in zip(self.streams, rows, (stride.visual_offset, stride.global_offset), strict=True):
            for own, part in zip(jax.tree.leaves(stream), jax.tree.leaves(new), strict=True):
                own[layer, :, start : start + part.shape[2]] = np.asarray(part)[0]

    def restore(self, level: StoredLevel) -> None:
        """Write the groups of an unfinished memory file of the same video."""
        for index in range(len(level.group_records)):
            self._put(level.read_record(index), *record_groups(self.layout)[index], self.layout)

    def _put(self, rows: DenseCache, first: int, last: int, layout: Layout) -> None:
        for stream, new, (start, stop) in zip(self.streams, rows, rows_of_groups(layout, first, last), strict=True):
            for own, part in zip(jax.tree.leaves(stream), jax.tree.leaves(new), strict=True):
                own[:, :, start:stop] = part
