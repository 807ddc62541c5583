"""How arrays lie in a TPU's memory, as far as kernels must know."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from pallas_kernels.kv_cache import KVCache

LANES = 128
_LARGE = 8 << 20
"""Bytes of keys from which on a cache, with its scales, is kept in main memory. XLA may copy what a kernel reads into VMEM as a
whole, which suits the keys of a question but not those of a video, of which a kernel reads parts."""


def sublanes(dtype: DTypeLike) -> int:
    """Rows of a tile must be multiples of this: 16 in bfloat16, 8 in float32."""
    return 32 // jnp.dtype(dtype).itemsize


def start_multiple(dtype: DTypeLike) -> int:
    """The start of a slice of keys must be a multiple of this, and so must the slots of a cache: of caches in int8, 128
    scales share a row of lanes."""
    return LANES if jnp.dtype(dtype) == jnp.int8 else sublanes(dtype)


def parts_of(cache: KVCache, interpret: Any = False) -> list[jax.Array]:
    """Keys and values [L, K, S, D], and of a cache in int8 their scales [L, K, 1, S], with S rounded up to a multiple of
    `start_multiple`."""
    missing = -cache.slots % start_multiple(cache.dtype)

    def padded(part: jax.Array) -> jax.Array:
        return jnp.pad(part, ((0, 0), (0, 0), (0, missing), (0, 0))) if missing else part

    stays = interpret or cache.k.size * cache.k.dtype.itemsize < _LARGE

    def held(part: jax.Array) -> jax.Array:
        return part if stays else pltpu.with_memory_space_constraint(part, pltpu.HBM)

    rows = [padded(part) for part in jax.tree.leaves(cache)]
    return [held(part) for part in [*rows[:2], *(jnp.swapaxes(scale, 2, 3) for scale in rows[2:])]]
