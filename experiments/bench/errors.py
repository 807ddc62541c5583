"""Errors of results: attention of sampled queries against a reference in full float32."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.attention import KVCache

TOLERANCE = {"bfloat16": 2e-2, "float16": 5e-3, "float32": 1e-3}
"""Relative errors above these are not rounding (float32 products may use fewer bits on accelerators)."""


@jax.jit
def reference_attention(
    q: jax.Array, streams: Sequence[KVCache], k_start: jax.Array, k_end: jax.Array, layer: jax.Array | int = 0
) -> jax.Array:
    """Attention of a few queries in float32, one key head at a time.

    Shapes: q [n, H, D]; streams of [L, K, S, D]; k_start, k_end int32 [number of streams, n] → float32 [n, H, D].
    """
    count, heads, width = q.shape
    kv_heads = streams[0].k.shape[1]
    rows = jnp.asarray(q, jnp.float32).reshape(count, kv_heads, heads // kv_heads, width) * width**-0.5
    visible = jnp.concatenate(
        [
            (jnp.arange(s.k.shape[2]) >= low[:, None]) & (jnp.arange(s.k.shape[2]) < high[:, None])
            for s, low, high in zip(streams, k_start, k_end, strict=True)
        ],
        axis=1,
    )
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)

    def one_head(head: jax.Array) -> jax.Array:
        k, v = (jnp.concatenate([getattr(s, part)[layer, head] for s in streams]).astype(jnp.float32) for part in "kv")
        logits = jnp.where(visible[:, None], product("nrd,sd->nrs", rows[:, head], k), -jnp.inf)
        return product("nrs,sd->nrd", jax.nn.softmax(logits, axis=-1), v)

    return jnp.moveaxis(lax.map(one_head, jnp.arange(kv_heads)), 0, 1).reshape(count, heads, width)


def relative_error(found: jax.Array, expected: jax.Array) -> float:
    """‖found − expected‖ / ‖expected‖; NaN where anything is NaN."""
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def evenly(length: int, count: int) -> np.ndarray:
    """int32 [≤ count]: evenly spaced indices below `length`, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(np.int32))
