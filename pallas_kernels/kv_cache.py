"""The key/value cache that every kernel reads."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KVCache(NamedTuple):
    """Keys (rotated) and values of all layers: [L, K, S, D] each."""

    k: jax.Array
    v: jax.Array

    def write(self, k: jax.Array, v: jax.Array, layer: jax.Array | int, offset: jax.Array | int) -> KVCache:
        """Return the cache with rows k, v [N, K, D] written at slot `offset` of one layer."""

        def put(cache: jax.Array, rows: jax.Array) -> jax.Array:
            rows = jnp.swapaxes(rows, 0, 1)[None].astype(cache.dtype)
            return jax.lax.dynamic_update_slice(cache, rows, (layer, 0, offset, 0))

        return KVCache(put(self.k, k), put(self.v, v))
