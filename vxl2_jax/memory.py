"""VideoMemory: what remains of a watched video. It does not depend on any question and is never changed.

Two levels. *Dense*: the two streams as pre-filled. *Sparse*: prefix and timestamps whole, visual keys and
values mean-pooled, in natural order and rotated at the positions they would have if everything were
sparse, so that a slot's index is its position and the level is a plain cache of the whole video.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import struct

from pallas_kernels.attention import KVCache
from vxl2_jax import prefill
from vxl2_jax.buckets import bucket
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.prefill import DenseCache
from vxl2_jax.storage import memory_file
from vxl2_jax.storage.memory_file import CacheShape, StoredLevel
from vxl2_jax.storage.memory_writer import MemoryFileWriter, restore_streams


class ResumeState(NamedTuple):
    """What extending a memory needs of its end, where that is not the end of a stride and of a group of frames.

    tokens [n, V, E]: visual tokens of the groups since the last stride began, whole groups only; frames uint8
    [m, S, S, 3]: the frames of a group that lacks some.
    """

    tokens: jax.Array
    frames: np.ndarray


@struct.dataclass
class VideoMemory:
    """A pytree; all but `dense`, `sparse` and `open` is static.

    dense: both streams on the device, or, of a memory on disk, a level of which chunks are read when a question
    wants them. seconds: per group, the second of its first frame; last_s: of the last frame; end_s: the second at
    which that frame ends; compression: visual tokens pooled into one; model: fingerprint of the model that watched;
    video, video_hash: its file's name and SHA-256, empty where there is no such file.
    """

    dense: DenseCache | StoredLevel
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
    open: ResumeState | None = None

    @property
    def sparse_length(self) -> int:
        """Tokens of the sparse level: the position of a question asked of it."""
        return self.layout.global_length + self.layout.groups * (self.layout.visual // self.compression)

    def chunk_span(self, chunk: int, chunk_size: int) -> tuple[float, float]:
        """(start, end) seconds of video chunk `chunk`, counted from 1."""
        first, last = (chunk - 1) * chunk_size, chunk * chunk_size
        return self.seconds[first], self.seconds[last] if last < len(self.seconds) else self.end_s

    def with_compression(self, compression: int) -> VideoMemory:
        """The same memory with another sparse level."""
        memory = self.resident()
        sparse = sparse_level(memory.dense, memory.layout, compression, memory.rope_theta)
        return memory.replace(sparse=sparse, compression=compression)

    def resident(self) -> VideoMemory:
        """The memory with its dense level on the device: itself, or, of a memory on disk, all of it read now.

        Raises RequestError for a damaged file.
        """
        if isinstance(self.dense, DenseCache):
            return self
        room = prefill.capacity(self.layout, memory_file.GROUPS_PER_RECORD)
        shape = self.dense.shape
        streams = prefill.empty_streams(shape.layers, shape.kv_heads, shape.head_width, room, jnp.dtype(shape.dtype))
        return self.replace(dense=restore_streams(streams, self.dense))

    def save(self, path: str | Path) -> None:
        """Write a memory file, in one step: what was there stays until all is written.

        Raises RequestError if it cannot be written.
        """
        memory = self.resident()
        writer = MemoryFileWriter(path, self.identity(), CacheShape.of(self.sparse), resume=False)
        try:
            writer.append(memory.dense, 0, memory.layout.groups)
            writer.finish(memory.sparse, memory.sparse_length, resume_arrays(memory.open))
        except BaseException:
            writer.close()
            writer.discard()
            raise

    @classmethod
    def load(cls, path: str | Path, verify: bool | None = None) -> VideoMemory:
        """Open what `save` or `vxl2 watch --out` wrote. The dense level stays on disk (see `resident`).

        verify: check all of the file now (True), or the parts of the dense level when a question first reads them
        (False); None: now, unless that would take long (over 2 GiB). Raises RequestError for a file that is
        missing, of another kind or version, cut short or damaged.
        """
        found = memory_file.read(path, verify)
        try:
            said = {name: found.identity[name] for name in _SCALARS}
            rule, seconds = PrefillRule(**found.identity["rule"]), tuple(found.identity["seconds"])
        except (KeyError, TypeError) as error:
            raise memory_file.damaged_error(Path(path)) from error
        arrays = found.resume_arrays
        opened = ResumeState(jnp.array(arrays["tokens"]), np.array(arrays["frames"])) if arrays else None
        layout, length = found.dense.layout, found.sparse.k.shape[2]
        beyond = sparse_capacity(layout, said["compression"]) - length
        sparse = KVCache(*(jnp.array(np.pad(part, ((0, 0), (0, 0), (0, beyond), (0, 0)))) for part in found.sparse))
        return cls(found.dense, sparse, layout, rule, seconds=seconds, open=opened, **said)

    def identity(self) -> dict[str, Any]:
        """What a memory file says of the memory, ready for JSON: two with the same identity hold the same."""
        return identity(
            CacheShape.of(self.sparse),
            self.layout,
            self.rule,
            self.seconds,
            **{name: getattr(self, name) for name in _SCALARS},
        )


_SCALARS = ("compression", "end_s", "last_s", "frames", "rope_theta", "model", "video", "video_hash")


def identity(
    shape: CacheShape, layout: Layout, rule: PrefillRule, seconds: tuple[float, ...], **scalars: Any
) -> dict[str, Any]:
    """See `VideoMemory.identity`; all of it is known before a video is watched."""
    return {
        "version": memory_file.VERSION,
        "shape": list(shape),
        "rule": dataclasses.asdict(rule),
        "layout": {"prefix": layout.prefix, "stamps": list(layout.stamps), "visual": layout.visual},
        **{name: scalars[name] for name in _SCALARS},
        "seconds": list(seconds),
    }


def resume_arrays(opened: ResumeState | None) -> dict[str, np.ndarray]:
    """The arrays that a memory file keeps for extending the memory."""
    return {} if opened is None else {name: np.asarray(part) for name, part in opened._asdict().items()}


def check_compression(compression: int, visual: int) -> None:
    """Raise RequestError unless a window of `compression` visual tokens fits in a group."""
    if not 1 <= compression <= visual:
        raise RequestError(f"compression must be from 1 to {visual} (the visual tokens of a group), not {compression}")


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, (0, length - len(array)))


def sparse_capacity(layout: Layout, compression: int) -> int:
    """Slots of a sparse level: its length rounded up, so that videos of like length share executables."""
    return bucket(layout.global_length + layout.groups * (layout.visual // compression), minimum=128)


def sparse_level(dense: DenseCache, layout: Layout, compression: int, rope_theta: float) -> KVCache:
    """Pool the dense level into a sparse one of fixed capacity [L, K, S, D]; slot index = position."""
    check_compression(compression, layout.visual)
    kept = layout.visual // compression
    room_v, room_g = dense.visual.k.shape[2], dense.global_.k.shape[2]
    room = sparse_capacity(layout, compression)
    new_v, new_g = layout.visual_positions(kept), layout.global_positions(kept)
    # For every slot of the sparse level, its source: a global token, or (behind them) a pooled one.
    source = np.zeros(room, np.int32)
    source[new_g] = np.arange(len(new_g))
    source[new_v] = room_g + np.arange(len(new_v))
    return _pool(
        dense,
        _padded(layout.visual_positions(), room_v),
        _padded(new_v, room_v // layout.visual * kept),
        _padded(new_g - layout.global_positions(), room_g),
        source,
        visual=layout.visual,
        compression=compression,
        rope_theta=rope_theta,
    )


@partial(jax.jit, static_argnames=("visual", "compression", "rope_theta"))
def _pool(dense, old_visual, new_visual, shift_global, source, *, visual, compression, rope_theta):
    """Keys are turned back before pooling (the original caches them unrotated) and turned again after."""
    width = dense.visual.k.shape[-1]

    def turn(positions):
        return rotation(positions, width, rope_theta)

    back, forth, along = turn(-old_visual), turn(new_visual), turn(shift_global)
    kept = visual // compression

    def pool(rows: jax.Array) -> jax.Array:
        whole = rows[:, : rows.shape[1] // visual * visual]
        groups = rearrange(whole, "k (g v) d -> k g v d", v=visual)[:, :, : kept * compression]
        return reduce(groups.astype(jnp.float32), "k g (n c) d -> k (g n) d", "mean", c=compression)

    def one_layer(layer: DenseCache) -> KVCache:
        k = rotate(pool(rotate(layer.visual.k.astype(jnp.float32), *back)), *forth).astype(layer.visual.k.dtype)
        v = pool(layer.visual.v).astype(k.dtype)

        def gather(global_, pooled):
            return jnp.concatenate([global_, pooled], axis=1)[:, source]

        return KVCache(gather(rotate(layer.global_.k, *along), k), gather(layer.global_.v, v))

    return jax.lax.map(one_layer, dense)
