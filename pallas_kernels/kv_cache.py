"""The key/value cache that every kernel reads: in a floating-point dtype, or in 8 bits with a scale per token and head."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8

_LARGEST = 127
Index = jax.Array | np.ndarray | np.integer | int
"""A slot or a layer."""


class KVCache(NamedTuple):
    """Keys (rotated) and values of all layers.

    Attributes:
      k, v: [L, K, S, D].
      k_scale, v_scale: None, or of caches in int8 the float32 scales [L, K, S, 1]: key = k · k_scale.
    """

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the stored keys and values."""
        return self.k.dtype

    @property
    def slots(self) -> int:
        """The capacity S."""
        return self.k.shape[2]

    def query_dtype(self, dtype: DTypeLike) -> DTypeLike:
        """The dtype in which queries of `dtype` are multiplied with the keys: the cache's, or theirs if it is int8."""
        return dtype if self.k_scale is not None else self.dtype

    def write(self, k: jax.Array, v: jax.Array, layer: Index, offset: Index) -> KVCache:
        """Return the cache with rows k, v [N, K, D] written at slot `offset` of one layer."""

        def put(cache: jax.Array, rows: jax.Array) -> jax.Array:
            rows = jnp.swapaxes(rows, 0, 1)[None]
            return jax.lax.dynamic_update_slice(cache, rows, (layer, 0, offset, 0))

        return jax.tree.map(put, self, KVCache.of_rows(k, v, self.dtype))

    def rows(self, start: Index, count: int) -> KVCache:
        """`count` slots from slot `start` on, of all layers."""
        return jax.tree.map(lambda part: jax.lax.dynamic_slice_in_dim(part, start, count, axis=2), self)

    def with_rows(self, rows: KVCache, start: Index) -> KVCache:
        """The cache with the slots from `start` on replaced by those of `rows`, which has as many layers."""
        return jax.tree.map(lambda part, new: jax.lax.dynamic_update_slice_in_dim(part, new, start, axis=2), self, rows)

    def padded(self, slots: int) -> KVCache:
        """The cache on the host, as NumPy arrays, with `slots` slots, at least its own number; those added hold zeros."""
        missing = ((0, 0), (0, 0), (0, slots - self.slots), (0, 0))
        return jax.tree.map(lambda part: np.pad(part, missing), self)

    @classmethod
    def of_rows(cls, k: Float[Array, "*rows D"], v: Float[Array, "*rows D"], dtype: DTypeLike) -> KVCache:
        """Rows as a cache of `dtype` stores them: a cast, or with int8 integers and scales."""
        if jnp.dtype(dtype) != jnp.int8:
            return cls(k.astype(dtype), v.astype(dtype))
        (k, k_scale), (v, v_scale) = quantise(k), quantise(v)
        return cls(k, v, k_scale, v_scale)

    def dequantised(self, dtype: DTypeLike) -> tuple[Float[Array, "*rows D"], Float[Array, "*rows D"]]:
        """(keys, values) in a floating-point dtype. Of a large cache in int8, dequantise a part at a time."""
        return dequantise(self.k, self.k_scale, dtype), dequantise(self.v, self.v_scale, dtype)


def quantise(rows: Float[Array, "*rows D"]) -> tuple[Int8[Array, "*rows D"], Float32[Array, "*rows 1"]]:
    """Symmetric 8-bit integers, rounded to nearest even, and a scale per row, whose largest number becomes ±127."""
    rows = rows.astype(jnp.float32)
    scale = jnp.abs(rows).max(axis=-1, keepdims=True) / _LARGEST
    steps = rows / jnp.where(scale > 0, scale, 1)
    return jnp.clip(jnp.round(steps), -_LARGEST, _LARGEST).astype(jnp.int8), scale


def dequantise(rows: jax.Array, scale: jax.Array | None, dtype: DTypeLike) -> Float[Array, "*rows D"]:
    """Rows in a floating-point dtype. scale: None for rows that are not quantised."""
    return rows.astype(dtype) if scale is None else (rows.astype(jnp.float32) * scale).astype(dtype)


def zeros(
    layers: int, kv_heads: int, slots: int, width: int, dtype: DTypeLike, sharding: jax.sharding.Sharding | None = None
) -> KVCache:
    """An empty cache of exactly `slots` slots. sharding: where its arrays are; None: on the default device."""
    shape = (layers, kv_heads, slots)
    k, v = (jnp.zeros((*shape, width), dtype, device=sharding) for _ in "kv")
    if jnp.dtype(dtype) != jnp.int8:
        return KVCache(k, v)
    return KVCache(k, v, *(jnp.zeros((*shape, 1), jnp.float32, device=sharding) for _ in "kv"))


def row_bytes(width: int, dtype: DTypeLike) -> int:
    """Bytes of the key and the value of one token in one head."""
    dtype = jnp.dtype(dtype)
    return 2 * (width * dtype.itemsize + (4 if dtype == jnp.int8 else 0))


def aligned(slots: int, dtype: DTypeLike) -> int:
    """`slots`, rounded up to a capacity from which a TPU cuts key tiles without a copy: its smallest piece of keys has 16
    rows, that of scales 128."""
    multiple = 128 if jnp.dtype(dtype) == jnp.int8 else 16
    return -(-slots // multiple) * multiple
