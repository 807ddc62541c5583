"""VideoMemory: what remains of a watched video. It does not depend on any question and is never changed.

Two levels. *Dense*: the two streams as pre-filled. *Sparse*: prefix and timestamps whole, visual keys and
values mean-pooled, in natural order and rotated at the positions they would have if everything were
sparse, so that a slot's index is its position and the level is a plain cache of the whole video.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import struct
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from pallas_kernels.attention import Stream
from vxl2_jax.buckets import bucket
from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import Layout, Rule
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.prefill import Streams


@struct.dataclass
class VideoMemory:
    """A pytree; the fields below `sparse` are static.

    seconds: per group, the second of its first frame; end_s: the second at which the last sampled frame
    ends; compression: visual tokens pooled into one; model: fingerprint of the model that watched; video: its file's name.
    """

    dense: Streams
    sparse: Stream
    layout: Layout = struct.field(pytree_node=False)
    rule: Rule = struct.field(pytree_node=False)
    compression: int = struct.field(pytree_node=False)
    seconds: tuple[float, ...] = struct.field(pytree_node=False)
    end_s: float = struct.field(pytree_node=False)
    frames: int = struct.field(pytree_node=False)
    rope_theta: float = struct.field(pytree_node=False)
    model: str = struct.field(pytree_node=False, default="")
    video: str = struct.field(pytree_node=False, default="")

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
        sparse = sparse_level(self.dense, self.layout, compression, self.rope_theta)
        return self.replace(sparse=sparse, compression=compression)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically. The sparse level is derived and not stored."""
        path = Path(path)
        partial_path = path.with_name(f".{path.name}.{os.getpid()}.part")
        tensors = {
            f"{name}.{part}": getattr(getattr(self.dense, name), part) for name in Streams._fields for part in "kv"
        }
        described = {
            "format": "vxl2-memory-1", "layout": dataclasses.asdict(self.layout), "rule": dataclasses.asdict(self.rule),
            **{name: getattr(self, name) for name in _SCALARS}, "seconds": self.seconds,
        }
        try:
            save_file(tensors, partial_path, metadata={"memory": json.dumps(described)})
            os.replace(partial_path, path)
        except (OSError, SafetensorError) as error:
            raise RequestError(f"{path}: cannot write the memory ({error}); choose another place") from error
        finally:
            partial_path.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> VideoMemory:
        """Read what `save` wrote. Raises RequestError for a missing, damaged or foreign file."""
        try:
            with safe_open(path, "flax") as file:
                described = json.loads((file.metadata() or {})["memory"])
                if described.pop("format") != "vxl2-memory-1":
                    raise KeyError("format")
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            layout = described.pop("layout")
            layout = Layout(layout["prefix"], tuple(layout["stamps"]), layout["visual"])
            rule, seconds = Rule(**described.pop("rule")), tuple(described.pop("seconds"))
            rest = {name: described[name] for name in _SCALARS}
            dense = Streams(*(Stream(tensors[f"{name}.k"], tensors[f"{name}.v"]) for name in Streams._fields))
        except FileNotFoundError as error:
            raise RequestError(f"{path}: no such memory file; `vxl2 watch VIDEO --out {path}` makes one") from error
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{path}: not a readable video memory ({error}); watch the video again") from error
        sparse = sparse_level(dense, layout, rest["compression"], rest["rope_theta"])
        return cls(dense=dense, sparse=sparse, layout=layout, rule=rule, seconds=seconds, **rest)


_SCALARS = ("compression", "end_s", "frames", "rope_theta", "model", "video")


def check_compression(compression: int, visual: int) -> None:
    """Raise RequestError unless a window of `compression` visual tokens fits in a group."""
    if not 1 <= compression <= visual:
        raise RequestError(f"compression must be from 1 to {visual} (the visual tokens of a group), not {compression}")


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, (0, length - len(array)))


def sparse_level(dense: Streams, layout: Layout, compression: int, rope_theta: float) -> Stream:
    """Pool the dense level into a sparse one of fixed capacity [L, K, S, D]; slot index = position."""
    check_compression(compression, layout.visual)
    kept = layout.visual // compression
    room_v, room_g = dense.visual.k.shape[2], dense.global_.k.shape[2]
    room = bucket(room_g + room_v // layout.visual * kept)
    new_v, new_g = layout.visual_positions(kept), layout.global_positions(kept)
    # For every slot of the sparse level, its source: a global token, or (behind them) a pooled one.
    source = np.zeros(room, np.int32)
    source[new_g] = np.arange(len(new_g))
    source[new_v] = room_g + np.arange(len(new_v))
    return _pool(
        dense, _padded(layout.visual_positions(), room_v), _padded(new_v, room_v // layout.visual * kept),
        _padded(new_g - layout.global_positions(), room_g), source,
        visual=layout.visual, compression=compression, rope_theta=rope_theta,
    )


@partial(jax.jit, static_argnames=("visual", "compression", "rope_theta"))
def _pool(dense, old_visual, new_visual, shift_global, source, *, visual, compression, rope_theta):
    """Keys are turned back before pooling (the original caches them unrotated) and turned again after."""
    width = dense.visual.k.shape[-1]
    turn = lambda positions: rotation(positions, width, rope_theta)
    back, forth, along = turn(-old_visual), turn(new_visual), turn(shift_global)
    kept = visual // compression

    def pool(rows: jax.Array) -> jax.Array:
        groups = rearrange(rows, "k (g v) d -> k g v d", v=visual)[:, :, : kept * compression]
        return reduce(groups.astype(jnp.float32), "k g (n c) d -> k (g n) d", "mean", c=compression)

    def one_layer(layer: Streams) -> Stream:
        k = rotate(pool(rotate(layer.visual.k.astype(jnp.float32), *back)), *forth).astype(layer.visual.k.dtype)
        v = pool(layer.visual.v).astype(k.dtype)
        gather = lambda global_, pooled: jnp.concatenate([global_, pooled], axis=1)[:, source]
        return Stream(gather(rotate(layer.global_.k, *along), k), gather(layer.global_.v, v))

    return jax.lax.map(one_layer, dense)


def describe(config: ModelConfig, params: Any) -> str:
    """A fingerprint of a model: geometry and a few weights, enough to refuse another model's memory."""
    digest = hashlib.sha256(repr(config).encode())
    for leaf in (params["language"]["norm"]["scale"], params["projector"]["linear_out"]["bias"]):
        digest.update(np.asarray(leaf.astype(jnp.float32)).tobytes())
    return digest.hexdigest()[:16]
