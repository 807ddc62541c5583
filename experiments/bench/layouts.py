"""Layouts of videos at one frame a second, and random inputs of their sizes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.attention import KVCache
from vxl2_jax.layout import Layout

PREFIX = 14
"""Tokens of Qwen2.5 before a video."""
_GROUP = 4


def video(frames: int, visual: int) -> Layout:
    """A video of so many frames. A timestamp, "Time 123.0s:", is six tokens and one per digit of the whole seconds."""
    return Layout(PREFIX, tuple(6 + len(str(second)) for second in range(0, frames, _GROUP)), visual)


@partial(jax.jit, static_argnames=("shape", "dtype"))
def normal(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Standard normal numbers, one slice of the first axis after the other: temporaries stay small."""

    def one(key):
        return jax.random.normal(key, shape[1:], dtype)

    return jax.lax.map(one, jax.random.split(key, shape[0]))


def stream(key: jax.Array, layers: int, kv_heads: int, length: int, width: int, dtype: str) -> KVCache:
    """Random keys and values [L, K, S, D]."""
    shape = (layers, kv_heads, length, width)
    return KVCache(*(normal(part, shape, dtype) for part in jax.random.split(key)))


def size(arrays: object) -> int:
    """Bytes of a pytree of arrays."""
    return sum(a.size * jnp.dtype(a.dtype).itemsize for a in jax.tree.leaves(arrays))
