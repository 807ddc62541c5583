"""Quantised parameters in one safetensors file, written and read a part of a tensor at a time.

The library's own writer takes all tensors as bytes at once. Two 4-bit numbers share a byte: the even columns are the lower
halves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int, UInt8

from vxl2_jax import files
from vxl2_jax.checkpoints import assemble
from vxl2_jax.checkpoints.shards import Shards
from vxl2_jax.errors import CheckpointError

NAME = "params.safetensors"
_DTYPES = {"int8": "I8", "uint8": "U8", "float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_PART_BYTES = 2**23


def write(directory: Path, params: Any) -> None:
    """Write a parameter tree to `NAME` in a directory. Raises OSError if it cannot be written."""
    leaves = _by_name(params)
    header, end = {}, 0
    for name, leaf in leaves.items():
        stored = _stored(leaf)
        begin, end = end, end + stored.size * stored.dtype.itemsize
        header[name] = {"dtype": _DTYPES[stored.dtype.name], "shape": stored.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    files.check_disk_space(directory, 8 + len(text) + end)
    with open(directory / NAME, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for leaf in leaves.values():
            for begin, stop in _parts(_stored(leaf)):
                array = np.ascontiguousarray(_read_part(leaf, begin, stop - begin) if leaf.ndim else leaf)
                file.write(array.reshape(-1).view(np.uint8))  # as it is: `tobytes` would copy it


def read(directory: Path, abstract: Any) -> Iterator[jax.Array]:
    """Read the arrays of `abstract`, a tree of ShapeDtypeStructs, one after another, onto the default device or with the
    shardings that they have; floats are cast.

    Raises CheckpointError if the file lacks one of them, or has one of another shape or kind, and ValueError for NaN.
    """
    shards, names = Shards(directory), _by_name(abstract)
    for name, leaf in names.items():
        stored = _stored(leaf)
        if shards.shape(name) != stored.shape:
            raise CheckpointError(f"{name} is {shards.shape(name)}, but vxl2.json says {stored.shape}")
        kind = shards.dtype(name)
        if kind != _DTYPES[stored.dtype.name] and not (kind.startswith(("F", "B")) and leaf.dtype not in _INTEGERS):
            raise CheckpointError(f"{name} holds {kind}")
    for name, leaf in names.items():
        # A byte may hold the last number of one shard and the first of the next: then all devices receive both.
        own = 1 if leaf.sharding is None else leaf.shape[-1] // leaf.sharding.shard_shape(leaf.shape)[-1]
        divided = leaf.dtype != jnp.int4 or own == 1 or leaf.shape[-1] // own % 2 == 0
        make = _Unpack(leaf.shape[-1] // own if divided else leaf.shape[-1], leaf.dtype)
        found, finite = assemble.assemble(leaf, [shards.get(name)], make, same_axes=divided)
        assemble.check_finite(name, all(finite))
        yield found


_INTEGERS = (jnp.int8, jnp.int4)


def _name(path: tuple) -> str:
    return ".".join(str(getattr(key, "key", None) or getattr(key, "name", "")) for key in path)


def _by_name(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _stored(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a leaf in the file."""
    if leaf.dtype != jnp.int4:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct((*leaf.shape[:-1], -(-leaf.shape[-1] // 2)), jnp.uint8)


def _parts(stored: jax.ShapeDtypeStruct) -> Iterator[tuple[int, int]]:
    """Ranges of the first axis of `_PART_BYTES` each; one at least."""
    rows = stored.shape[0]
    step = max(_PART_BYTES * rows // max(stored.size * stored.dtype.itemsize, 1), 1)
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)


@partial(jax.jit, static_argnums=2)
def _read_part(leaf: jax.Array, begin: ArrayLike, rows: int) -> jax.Array:
    """Some rows as they are stored. One program serves all whole parts of a leaf."""
    part = jax.lax.dynamic_slice_in_dim(leaf, begin, rows, axis=0)
    return _pack(part) if leaf.dtype == jnp.int4 else part


def _pack(values: Int[Array, "*shape"]) -> UInt8[Array, "*packed"]:
    pairs = jnp.pad(values.astype(jnp.uint8), [(0, 0)] * (values.ndim - 1) + [(0, values.shape[-1] % 2)])
    pairs = pairs.reshape(*pairs.shape[:-1], -1, 2)
    return (pairs[..., 0] & 15) | (pairs[..., 1] << 4)


def _unpack(packed: UInt8[Array, "*packed"], columns: int) -> Int[Array, "*shape"]:
    low, high = (packed << 4).astype(jnp.int8) >> 4, packed.astype(jnp.int8) >> 4
    return jnp.stack([low, high], axis=-1).reshape(*packed.shape[:-1], -1)[..., :columns].astype(jnp.int4)


@dataclass(frozen=True)
class _Unpack:
    """What is made of a part of a stored array: `columns` numbers in its last axis if they are of 4 bits."""

    columns: int
    dtype: Any

    def __call__(self, part: jax.Array) -> jax.Array:
        return _unpack(part, self.columns) if self.dtype == jnp.int4 else part.astype(self.dtype)
