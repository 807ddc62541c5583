"""The dense level of a video that is sharded over the devices of a mesh (see `placement`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache as cache_results
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import kv_cache
from pallas_kernels.attention import KVCache
from pallas_kernels.kv_cache import Index
from vxl2_jax.buckets import bucket
from vxl2_jax.placement import Placement
from vxl2_jax.prefill import DenseCache, PrefillShape
from vxl2_jax.storage.host_level import HostLevel
from vxl2_jax.storage.memory_file import CacheShape, StoredLevel, rows_of_groups
from vxl2_jax.tensor_parallel import CACHE, MODEL, SEQUENCE, SHARDED_CACHE, mesh_of


@struct.dataclass
class PlacedLevel:
    """A dense level on several devices.

    Attributes:
      streams: the visual stream, of which each device has its own groups, and the global stream, which all of them have.
      placement: which groups are where.
    """

    streams: DenseCache
    placement: Placement = struct.field(pytree_node=False)

    @classmethod
    def empty(cls, placement: Placement, shape: CacheShape, sizes: PrefillShape, mesh: Mesh) -> PlacedLevel:
        """A level without keys and values. sizes: of each device."""

        def zeros(slots: int, sharding: NamedSharding) -> KVCache:
            return kv_cache.zeros(shape.layers, shape.kv_heads, slots, shape.head_width, shape.dtype, sharding)

        visual = zeros(placement.devices * sizes.visual, NamedSharding(mesh, SHARDED_CACHE))
        return cls(DenseCache(visual, zeros(sizes.global_, NamedSharding(mesh, CACHE))), placement)

    @classmethod
    def copy_of(
        cls,
        level: HostLevel | StoredLevel,
        placement: Placement,
        sizes: PrefillShape,
        mesh: Mesh,
        groups: int | None = None,
    ) -> PlacedLevel:
        """A copy of a level in host memory or on disk, read one device's part at a time.

        groups: how many groups the level has; None: all. Raises RequestError if a memory file is damaged.
        """
        layout, shape = placement.layout, level.shape
        groups = layout.groups if groups is None else groups
        whole = jax.eval_shape(partial(kv_cache.zeros, *shape[:2], sizes.global_, *shape[2:]))
        global_stream = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), whole)

        def part_of(device: int) -> KVCache:
            held = placement.groups(device)
            held = held[held < groups]
            rows = level.gather(held)
            for own, new in zip(jax.tree.leaves(global_stream), jax.tree.leaves(rows.global_), strict=True):
                own[:, :, layout.global_rows(held)] = new
            return rows.visual

        visual = shard_slots(part_of, sizes.visual, mesh)
        return cls(DenseCache(visual, jax.device_put(global_stream, NamedSharding(mesh, CACHE))), placement)

    def extended(self, placement: Placement, sizes: PrefillShape) -> PlacedLevel:
        """A copy with the capacity for a longer video."""
        mesh = mesh_of(self.streams)
        assert mesh is not None
        visual = _with_slots(self.streams.visual, sizes.visual, mesh, SHARDED_CACHE)
        return PlacedLevel(DenseCache(visual, _with_slots(self.streams.global_, sizes.global_, mesh, CACHE)), placement)

    @property
    def shape(self) -> CacheShape:
        """Shape and dtype of the caches."""
        return CacheShape.of(self.streams.global_)

    def cut(self, first: int, last: int) -> Callable[[], DenseCache]:
        """The rows of the groups `first` … `last` − 1, with the prefix if `first` is 0.

        The rows are cut out on the devices right away, so that the level may be donated afterwards. The function that is
        returned copies them to the host.
        """
        layout, visual = self.placement.layout, self.streams.visual
        parts = []
        for begin, end in self.placement.pieces(first, last):
            device = int(self.placement.owner[begin])
            start = int(self.placement.visual(np.asarray(begin * layout.visual), device))
            parts.append(_cut(visual, device, start, (end - begin) * layout.visual))
        start, stop = rows_of_groups(layout, first, last).global_
        read_global = _cut(self.streams.global_, 0, start, stop - start)

        def read() -> DenseCache:
            each = [part() for part in parts]
            return DenseCache(jax.tree.map(lambda *rows: np.concatenate(rows, axis=2), *each), read_global())

        return read

    def read_groups(self, first: int, last: int) -> DenseCache:
        """The rows of `cut`, on the host."""
        return self.cut(first, last)()


def shard_slots(part_of: Callable[[int], KVCache], slots: int, mesh: Mesh) -> KVCache:
    """A cache of which each device along the sequence axis has `slots` slots. part_of: (number of a device) → its rows, on
    the host, which are padded with zeros."""
    devices, sharding = np.asarray(mesh.devices), NamedSharding(mesh, SHARDED_CACHE)
    pieces: list[KVCache] = []
    for number, row in enumerate(devices):
        full = part_of(number).padded(slots)
        for way, device in enumerate(row):
            if device.process_index != jax.process_index():
                continue
            own = jax.tree.map(lambda a, n=len(row), way=way: np.split(a, n, axis=1)[way], full)
            pieces.append(jax.device_put(own, device))

    def assembled(*parts: jax.Array) -> jax.Array:
        layers, heads, _, width = parts[0].shape
        shape = layers, heads * mesh.shape[MODEL], len(devices) * slots, width
        return jax.make_array_from_single_device_arrays(shape, sharding, list(parts))

    return jax.tree.map(assembled, *pieces)


def slots_of(cache: KVCache, device: int) -> KVCache:
    """The part of one device along the sequence axis, on the host."""
    mesh = mesh_of(cache)
    assert mesh is not None
    return _cut(cache, device, 0, cache.slots // mesh.shape[SEQUENCE])()


def _cut(cache: KVCache, device: int, start: int, count: int) -> Callable[[], KVCache]:
    """`count` slots of a device's part, sent to all devices; of few static sizes, so that few programs are compiled.

    Of a cache that every device has, `device` does not matter.
    """
    mesh, sharding = mesh_of(cache), cache.k.sharding
    assert mesh is not None and isinstance(sharding, NamedSharding)
    is_sharded = SEQUENCE in sharding.spec
    capacity = cache.slots // (mesh.shape[SEQUENCE] if is_sharded else 1)
    size = min(bucket(count), capacity)
    begin = min(start, capacity - size)
    cut = _cutting(mesh, size, is_sharded, not cache.k.is_fully_addressable)
    rows, skipped = cut(cache, np.int32(device), np.int32(begin)), start - begin

    def read() -> KVCache:
        return jax.tree.map(lambda a: np.asarray(a)[:, :, skipped : skipped + count], rows)

    return read


@cache_results
def _cutting(mesh: Mesh, size: int, is_sharded: bool, gather_heads: bool) -> Callable[..., KVCache]:
    def cut(cache: KVCache, device: Index, start: Index) -> KVCache:
        def send(part: jax.Array) -> jax.Array:
            if is_sharded:
                holds = jax.lax.axis_index(SEQUENCE) == device
                part = jax.lax.psum(jnp.where(holds, part, jnp.zeros_like(part)), SEQUENCE)
            return jax.lax.all_gather(part, MODEL, axis=1, tiled=True) if gather_heads else part

        return jax.tree.map(send, cache.rows(start, size))

    specs = (SHARDED_CACHE if is_sharded else CACHE, P(), P())
    return jax.jit(
        jax.shard_map(cut, mesh=mesh, in_specs=specs, out_specs=P() if gather_heads else CACHE, check_vma=False)
    )


def _with_slots(cache: KVCache, slots: int, mesh: Mesh, spec: jax.sharding.PartitionSpec) -> KVCache:
    """A copy of which each device has `slots` slots."""

    def resized(part: jax.Array) -> jax.Array:
        change = ((0, 0, 0), (0, 0, 0), (0, slots - part.shape[2], 0), (0, 0, 0))  # a negative number cuts
        return jax.lax.pad(part, np.zeros((), part.dtype), change)

    def resize(cache: KVCache) -> KVCache:
        return jax.tree.map(resized, cache)

    return jax.jit(jax.shard_map(resize, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))(cache)
