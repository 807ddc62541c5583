"""VideoMemory: the key/value caches that remain of a watched video. It depends on no question and never changes.

It has two levels. The *dense level* is the two streams as pre-filled. The *sparse level* keeps the prefix and the
timestamps as they are, and pools the visual tokens; see `cache.pooling`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from flax import struct
from jax.sharding import Mesh

from pallas_kernels.attention import KVCache
from vxl2_jax import notebook, offload, prefill, sequence_parallel
from vxl2_jax.cache.pooling import sharded_capacity, sparse_capacity, sparse_level, sparse_level_of_shards
from vxl2_jax.errors import RequestError
from vxl2_jax.files import check_path
from vxl2_jax.hosts import on_every_host
from vxl2_jax.layout import Layout, PrefillRule, attention_pairs
from vxl2_jax.placement import Placement, resumed
from vxl2_jax.prefill import DenseCache
from vxl2_jax.storage import memory_file
from vxl2_jax.storage.host_level import HostLevel
from vxl2_jax.storage.memory_file import CacheShape, StoredLevel
from vxl2_jax.storage.memory_writer import open_writer, restore_streams
from vxl2_jax.storage.placed_level import PlacedLevel, shard_slots, slots_of
from vxl2_jax.tensor_parallel import cache_sharding, mesh_of, place_caches, shape_of
from vxl2_jax.text.typed import printable


class ResumeState(NamedTuple):
    """What is needed to extend a memory that does not end with a whole stride and a whole group.

    tokens [n, V, E]: visual tokens of the whole groups since the last stride began; frames uint8 [m, px, px, 3]: the
    frames of an incomplete group.
    """

    tokens: jax.Array
    frames: np.ndarray


@struct.dataclass
class VideoMemory:
    """A pytree, static except for `dense`, `sparse` and `resume_state`.

    Attributes:
      dense: both streams on the device, or sharded over devices; or in host memory or on disk, from which chunks are loaded on
        demand.
      sparse: the pooled level [L, K, S, D]. For a memory on disk it is in host memory until a model reads it (see `place`).
      placement: which device holds which groups, if the video is sharded; the slots of the sparse level then are, too.
      layout, rule: positions and visibility of the tokens.
      compression: visual tokens pooled into one.
      seconds: the time of each group's first frame, in seconds.
      end_s: the time at which the last frame ends, in seconds; last_s: at which it begins.
      frames: number of frames.
      model: fingerprint of the model that watched.
      video, video_hash: name and SHA-256 of the video file, empty if there is none.
      fingerprint, reading: see `frames.FrameSource`.
      distinct_frames: how many of the frames differ, since one that stays on screen is watched several times; 0 if unknown.
      notes: what was missing, damaged or unusual in the video, a line each.
      generated: whether the metadata of the video say that `experiments.synthetic` made it (see `scope`).
      resume_state: what `watch_more` needs, if anything.
    """

    dense: DenseCache | PlacedLevel | HostLevel | StoredLevel
    sparse: KVCache
    layout: Layout = struct.field(pytree_node=False)
    rule: PrefillRule = struct.field(pytree_node=False)
    compression: int = struct.field(pytree_node=False)
    seconds: tuple[float, ...] = struct.field(pytree_node=False)
    end_s: float = struct.field(pytree_node=False)
    frames: int = struct.field(pytree_node=False)
    rope_theta: float = struct.field(pytree_node=False)
    last_s: float = struct.field(pytree_node=False, default=0.0)
    model: str = struct.field(pytree_node=False, default="")
    video: str = struct.field(pytree_node=False, default="")
    video_hash: str = struct.field(pytree_node=False, default="")
    fingerprint: str = struct.field(pytree_node=False, default="")
    reading: str = struct.field(pytree_node=False, default="")
    distinct_frames: int = struct.field(pytree_node=False, default=0)
    notes: tuple[str, ...] = struct.field(pytree_node=False, default=())
    generated: bool = struct.field(pytree_node=False, default=False)
    resume_state: ResumeState | None = None
    placement: Placement | None = struct.field(pytree_node=False, default=None)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of keys and values: the model's, or int8."""
        return np.dtype(self.sparse.dtype)

    @property
    def sparse_length(self) -> int:
        """Tokens of the sparse level: the position of a question asked of it."""
        return self.layout.sparse_length(self.compression)

    def chunk_span(self, chunk: int, chunk_size: int) -> tuple[float, float]:
        """(start, end) seconds of video chunk `chunk`, counted from 1."""
        first, last = (chunk - 1) * chunk_size, chunk * chunk_size
        return self.seconds[first], self.seconds[last] if last < len(self.seconds) else self.end_s

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}".strip() for name, value in self._facts().items())
        return f"VideoMemory({self.video or 'frames'!r}, {facts})"

    def _repr_html_(self) -> str:
        return notebook.card(printable(self.video) or "frames", self._facts())

    def _facts(self) -> dict[str, str]:
        kept, causal = attention_pairs(self.layout, self.rule)
        device = jax.tree.leaves((self.dense, self.sparse))  # levels elsewhere are no leaves
        where = "on the device" if isinstance(self.sparse.k, jax.Array) else "on the host"
        if isinstance(self.dense, HostLevel):
            where += f", dense level of {self.dense.nbytes / 1e6:,.1f} MB in host memory"
        elif isinstance(self.dense, StoredLevel):
            where += ", dense level on disk"
        return {
            "": f"{self.frames:,} frames",
            "length": f"{self.end_s:,.1f} s",
            "cache": self.dtype.name,
            "tokens": f"{self.layout.length:,} dense, {self.sparse_length:,} sparse",
            "attention computed": f"{100 * kept / causal:.0f} %",
            "size": f"{sum(leaf.nbytes for leaf in device) / 1e6:,.1f} MB {where}",
        }

    @property
    def resume_group(self) -> int:
        """The group from which an extension pre-fills."""
        resume = self.resume_state
        return (
            self.layout.groups if resume is None else self.layout.groups - len(resume.tokens) - bool(len(resume.frames))
        )

    def place(self, params: Any, stride: int) -> None:
        """Move the caches to the devices of a model with these parameters, in place; their content does not change.

        Asking and extending call this first. Caches that are there already stay where they are. stride: groups per call of
        the language model, the unit in which a video is sharded.
        """
        mesh = mesh_of(params)
        devices, placement = shape_of(mesh).sequence, None
        if devices > 1:
            placement = resumed(self.layout, devices, stride, self.resume_group)
        if placement == self.placement and (placement is None or mesh_of(self.sparse) == mesh):
            dense, sparse = (
                place_caches((self.dense, self.sparse), params) if placement is None else (self.dense, self.sparse)
            )
        else:
            dense, sparse = self.dense, self.sparse_on_host()
            if isinstance(dense, (DenseCache, PlacedLevel)):
                moved = self.dense_on_host()
                dense = _shard_level(moved, placement, mesh) if placement else place_caches(moved.streams, params)
            sparse = (
                _shard_sparse(sparse, placement, self.compression, mesh) if placement else place_caches(sparse, params)
            )
        for name, value in (("dense", dense), ("sparse", sparse), ("placement", placement)):
            object.__setattr__(self, name, value)

    def with_compression(self, compression: int) -> VideoMemory:
        """The same memory, with a sparse level that pools `compression` visual tokens into one. The dense level is shared.

        Raises RequestError for a compression that the model's groups do not allow.
        """
        if isinstance(self.dense, DenseCache):
            sparse = sparse_level(self.dense, self.layout, compression, self.rope_theta)
        elif isinstance(self.dense, PlacedLevel):
            sparse = sparse_level_of_shards(self.dense, compression, self.rope_theta)
        else:
            placed = cache_sharding(self.sparse)
            sparse = offload.sparse_level(self.dense_on_host(), compression, self.rope_theta, placed)
            if self.placement and (mesh := mesh_of(self.sparse)):
                sparse = _shard_sparse(jax.device_get(on_every_host(sparse)), self.placement, compression, mesh)
        return dataclasses.replace(self, sparse=sparse, compression=compression)

    def resident(self) -> VideoMemory:
        """The memory with its dense level on the device; see `dense_on_device`."""
        on_device = isinstance(self.dense, (DenseCache, PlacedLevel))
        return self if on_device else dataclasses.replace(self, dense=self.dense_on_device())

    def dense_on_device(self) -> DenseCache | PlacedLevel:
        """The dense level on the device or devices. One in host memory or on disk is copied there as a whole.

        Raises RequestError for a damaged file.
        """
        if isinstance(self.dense, (DenseCache, PlacedLevel)):
            return self.dense
        if self.placement and (mesh := mesh_of(self.sparse)):
            return _shard_level(self.dense, self.placement, mesh)
        if isinstance(self.dense, HostLevel):
            return jax.device_put(self.dense.streams, cache_sharding(self.sparse), may_alias=False)
        shape = self.dense.shape
        sizes = prefill.shape_for(self.layout, memory_file.GROUPS_PER_RECORD, dtype=shape.dtype)
        caches = shape.layers, shape.kv_heads, shape.head_width
        streams = prefill.empty_streams(*caches, sizes, shape.dtype, cache_sharding(self.sparse))
        return restore_streams(streams, self.dense)

    def dense_on_host(self) -> HostLevel:
        """The dense level in host memory. Raises RequestError for a damaged file."""
        if isinstance(self.dense, HostLevel):
            return self.dense
        sizes = prefill.shape_for(self.layout, memory_file.GROUPS_PER_RECORD, dtype=self.dtype)
        if isinstance(self.dense, PlacedLevel):
            return HostLevel.collect(self.dense.shape, self.dense.read_groups, self.layout, sizes)
        return HostLevel.copy_of(self.dense, self.layout, sizes)

    def sparse_on_host(self) -> KVCache:
        """The sparse level in natural order, in host memory."""
        if self.placement is None:
            return jax.device_get(on_every_host(self.sparse))
        slots = sparse_capacity(self.layout, self.compression, self.dtype)
        shape = jax.eval_shape(lambda: jax.tree.map(lambda a: a[:, :, :1], self.sparse))
        whole = jax.tree.map(lambda a: np.zeros((*a.shape[:2], slots, a.shape[3]), a.dtype), shape)
        for device in range(self.placement.devices):
            rows = self.placement.sparse_rows(self.compression, device)
            part = slots_of(self.sparse, device)
            for own, new in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
                own[:, :, rows] = new[:, :, : len(rows)]
        return whole

    def save(self, path: str | Path) -> None:
        """Write a memory file. An existing file is replaced only when all is written.

        Raises RequestError if the file cannot be written.
        """
        path = check_path(path, "the memory file")
        writer = open_writer(path, self.identity(), CacheShape.of(self.sparse), resume=False)
        try:
            writer.append(self.dense, 0, self.layout.groups)
            writer.finish(self.sparse_on_host(), self.sparse_length, resume_arrays(self.resume_state), self.facts())
        except BaseException:
            writer.close()
            writer.discard()
            raise

    @classmethod
    def load(cls, path: str | Path, verify: bool | None = None) -> VideoMemory:
        """Open a file that `save` or `vxl2 watch --out` wrote. The dense level stays on disk (see `resident`).

        Args:
          path: the file.
          verify: verify the whole file now (True), or each part of the dense level when a question first reads it
            (False). None verifies it now unless that takes long (over 2 GiB).

        Raises:
          RequestError: the file is missing, of another kind or version, truncated or damaged.
        """
        path = check_path(path, "the memory file")
        contents = memory_file.read(path, verify)
        try:
            scalars = {name: contents.identity[name] for name in _SCALARS}
            rule, seconds = PrefillRule(**contents.identity["rule"]), tuple(contents.identity["seconds"])
        except (KeyError, TypeError) as error:
            raise memory_file.damaged_error(Path(path)) from error
        arrays, layout = contents.resume_arrays, contents.dense.layout
        resume = ResumeState(jnp.array(arrays["tokens"]), np.array(arrays["frames"])) if arrays else None
        sparse = contents.sparse.padded(sparse_capacity(layout, scalars["compression"], contents.sparse.dtype))
        about = {**scalars, **msgspec.structs.asdict(contents.facts)}
        return cls(contents.dense, sparse, layout, rule, seconds=seconds, resume_state=resume, **about)

    def identity(self) -> dict[str, Any]:
        """The metadata of the memory file, ready for JSON. Memories of the same video with the same identity are the same."""
        return identity(
            CacheShape.of(self.sparse),
            self.layout,
            self.rule,
            self.seconds,
            **{name: getattr(self, name) for name in _SCALARS},
        )

    def facts(self) -> memory_file.Facts:
        """What the memory file holds besides `identity`, and is known only once the video has been read."""
        return memory_file.Facts(self.video_hash, self.distinct_frames, self.notes)


def _shard_level(level: HostLevel | StoredLevel, placement: Placement, mesh: Mesh | None) -> PlacedLevel:
    assert mesh is not None
    sizes = sequence_parallel.shape_for(placement, placement.layout.groups, dtype=level.shape.dtype)
    return PlacedLevel.copy_of(level, placement, sizes, mesh)


def _shard_sparse(sparse: KVCache, placement: Placement, compression: int, mesh: Mesh | None) -> KVCache:
    """Shard a sparse level in natural order, on the host."""
    assert mesh is not None

    def part_of(device: int) -> KVCache:
        rows = placement.sparse_rows(compression, device)
        return jax.tree.map(lambda a: np.asarray(a)[:, :, rows], sparse)

    return shard_slots(part_of, sharded_capacity(placement, compression, sparse.dtype), mesh)


def check_is_memory(memory: Any) -> None:
    """Raise RequestError for anything but a memory."""
    if not isinstance(memory, VideoMemory):
        raise RequestError(f"memory must be a VideoMemory, as `Model.watch` returns, not {type(memory).__name__}")


_SCALARS = (
    *("compression", "end_s", "last_s", "frames", "rope_theta"),
    *("model", "video", "fingerprint", "reading", "generated"),
)


def identity(
    shape: CacheShape, layout: Layout, rule: PrefillRule, seconds: tuple[float, ...], **scalars: Any
) -> dict[str, Any]:
    """The identity of a memory (`VideoMemory.identity`), which is known before the video is watched."""
    return {
        "version": memory_file.VERSION,
        "shape": list(shape),
        "rule": dataclasses.asdict(rule),
        "layout": {"prefix": layout.prefix, "stamps": list(layout.timestamp_lengths), "visual": layout.visual},
        **{name: scalars[name] for name in _SCALARS},
        "seconds": list(seconds),
    }


def resume_arrays(state: ResumeState | None) -> dict[str, np.ndarray]:
    """The arrays that a memory file keeps for extending the memory."""
    return {} if state is None else {name: np.asarray(part) for name, part in on_every_host(state)._asdict().items()}
