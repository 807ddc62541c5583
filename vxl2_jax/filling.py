"""Three ways to fill a dense level while a video is watched: on the device, in host memory, or sharded over devices.

Each divides the video into calls of the language model, begins or extends a level, feeds it one call after another, and pools it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from pallas_kernels.attention import Kernel, KVCache
from vxl2_jax import offload, prefill, sequence_parallel
from vxl2_jax.cache.pooling import sparse_level, sparse_level_of_shards
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.memory import VideoMemory
from vxl2_jax.options import HOST
from vxl2_jax.placement import Placement, resumed
from vxl2_jax.prefill import DenseCache, PrefillShape
from vxl2_jax.runtime import Runtime
from vxl2_jax.storage.host_level import HostLevel
from vxl2_jax.storage.memory_file import CacheShape, StoredLevel
from vxl2_jax.storage.memory_writer import restore_streams
from vxl2_jax.storage.placed_level import PlacedLevel
from vxl2_jax.tensor_parallel import cache_sharding, mesh_of, shape_of


@dataclass(frozen=True)
class Filling:
    """What the three ways share.

    Attributes:
      model: the model that watches.
      layout, rule: positions and visibility of the tokens.
      ids: int32, the tokens of the whole global stream.
      dtype: of the cache.
      first: the group from which on the video is watched.
    """

    model: Runtime
    layout: Layout
    rule: PrefillRule
    ids: Int[np.ndarray, " global"]
    dtype: np.dtype
    first: int = 0

    @cached_property
    def placement(self) -> Placement | None:
        """Of a sharded video, which device holds which groups."""
        return None

    @cached_property
    def kernel(self) -> Kernel:
        """The attention kernel."""
        return self.model.kernel_for(self.dtype)

    @cached_property
    def begins(self) -> range:
        """The first group of every call."""
        return range(self.first, max(self.layout.groups, 1), self.model.groups_per_call)

    @cached_property
    def sizes(self) -> PrefillShape:
        """The static sizes of the calls."""
        return prefill.shape_for(self.layout, self.model.sizes.stride, self.first, dtype=self.dtype)

    @cached_property
    def strides(self) -> Sequence[Any]:
        """What each call feeds."""
        return prefill.plan_strides(self.layout, self.rule, self.ids, self.sizes, self.first)


class OnDevice(Filling):
    """A level on the device, or split by heads over devices."""

    def begin(self, shape: CacheShape, stored: StoredLevel | None) -> DenseCache:
        """A level that holds what a memory file of the same video has so far."""
        level = prefill.empty(self.model.config, self.sizes, shape.dtype, cache_sharding(self.model.params))
        return restore_streams(level, stored) if stored else level

    def extend(self, memory: VideoMemory) -> DenseCache:
        """A copy of the level of a memory, with the capacity for the longer video."""
        level = memory.dense_on_device()
        assert isinstance(level, DenseCache)
        return DenseCache(_resized(level.visual, self.sizes.visual), _resized(level.global_, self.sizes.global_))

    def feed(self, level: DenseCache, number: int, tokens: Float[jax.Array, "stride V E"]) -> DenseCache:
        """Run call `number` with its visual tokens. The level is donated."""
        model = self.model
        level, _ = prefill.run_stride(
            model.params, model.config, level, self.strides[number], tokens, kernel=self.kernel
        )
        return jax.block_until_ready(level)

    def pool(self, level: DenseCache, compression: int) -> KVCache:
        """The sparse level."""
        return jax.block_until_ready(
            sparse_level(level, self.layout, compression, self.model.config.language.rope_theta)
        )


class InHostMemory(Filling):
    """A level in host memory; see `offload`."""

    def begin(self, shape: CacheShape, stored: StoredLevel | None) -> HostLevel:
        """As `OnDevice.begin`."""
        level = HostLevel.empty(self.layout, shape, self.sizes)
        if stored:
            level.restore(stored)
        return level

    def extend(self, memory: VideoMemory) -> HostLevel:
        """As `OnDevice.extend`."""
        assert not isinstance(memory.dense, PlacedLevel)
        return HostLevel.copy_of(memory.dense, self.layout, self.sizes)

    def feed(self, level: HostLevel, number: int, tokens: Float[jax.Array, "stride V E"]) -> HostLevel:
        """As `OnDevice.feed`; the level is written in place."""
        model = self.model
        offload.run_stride(model.params, model.config, level, self.strides[number], tokens, self.kernel)
        return level

    def pool(self, level: HostLevel, compression: int) -> KVCache:
        """The sparse level, on the device."""
        model = self.model
        return offload.sparse_level(level, compression, model.config.language.rope_theta, cache_sharding(model.params))


class OverDevices(Filling):
    """A level that is sharded over the length of the video; see `sequence_parallel`."""

    @cached_property
    def mesh(self) -> Mesh:
        """The mesh of the model."""
        mesh = mesh_of(self.model.params)
        assert mesh is not None
        return mesh

    @cached_property
    def placement(self) -> Placement:
        """Which device holds which groups."""
        return resumed(self.layout, shape_of(self.mesh).sequence, self.model.sizes.stride, self.first)

    @cached_property
    def sizes(self) -> PrefillShape:
        """Those of one device."""
        return sequence_parallel.shape_for(self.placement, self.first, dtype=self.dtype)

    @cached_property
    def strides(self) -> Sequence[sequence_parallel.SharedStride]:
        """What each call feeds."""
        return sequence_parallel.plan_strides(self.placement, self.rule, self.ids, self.sizes, self.first)

    def begin(self, shape: CacheShape, stored: StoredLevel | None) -> PlacedLevel:
        """As `OnDevice.begin`."""
        if stored:
            return PlacedLevel.copy_of(stored, self.placement, self.sizes, self.mesh, groups=self.first)
        return PlacedLevel.empty(self.placement, shape, self.sizes, self.mesh)

    def extend(self, memory: VideoMemory) -> PlacedLevel:
        """As `OnDevice.extend`."""
        if isinstance(memory.dense, PlacedLevel):
            return memory.dense.extended(self.placement, self.sizes)
        assert not isinstance(memory.dense, DenseCache)
        return PlacedLevel.copy_of(memory.dense, self.placement, self.sizes, self.mesh, groups=memory.layout.groups)

    def feed(self, level: PlacedLevel, number: int, tokens: Float[jax.Array, "groups V E"]) -> PlacedLevel:
        """As `OnDevice.feed`."""
        model = self.model
        streams = sequence_parallel.run_stride(
            model.params,
            model.config,
            level.streams,
            self.strides[number],
            sequence_parallel.put_tokens(tokens, self.placement, self.begins[number], self.mesh),
            kernel=self.kernel,
        )
        return PlacedLevel(jax.block_until_ready(streams), self.placement)

    def pool(self, level: PlacedLevel, compression: int) -> KVCache:
        """The sparse level, sharded in the same way."""
        return jax.block_until_ready(sparse_level_of_shards(level, compression, self.model.config.language.rope_theta))


def way(model: Runtime, place: str) -> type[OnDevice | InHostMemory | OverDevices]:
    """The way for a dense level in this place. place: `options.DEVICE` or `options.HOST`."""
    if shape_of(mesh_of(model.params)).sequence > 1:
        return OverDevices
    return InHostMemory if place == HOST else OnDevice


def _resized(stream: KVCache, capacity: int) -> KVCache:
    change = ((0, 0, 0), (0, 0, 0), (0, capacity - stream.slots, 0), (0, 0, 0))  # a negative number cuts
    return jax.tree.map(lambda a: jax.lax.pad(a, jnp.zeros((), a.dtype), change), stream)
