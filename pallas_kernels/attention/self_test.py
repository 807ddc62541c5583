"""A kernel's first run on a machine: a small problem against the reference, before anything rests on it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import dispatch, reference
from pallas_kernels.attention.dispatch import Kernel
from pallas_kernels.attention.reference import KVCache

TOLERANCE = {2: 3e-2, 4: 1e-3}
"""Relative difference allowed in the output of any one head of a query, by the bytes of the dtype."""


def self_test(kernel: Kernel, *, dtype: Any, width: int) -> str | None:
    """Run a kernel on the present device with many queries, with one, and on whole frames.

    The ranges begin and end anywhere and are cut into pieces as on long videos; `width` is the head width.
    Returns what went wrong in one line, or None. A kernel that hangs is not noticed.
    """
    try:
        parts = [*(_ranges(kernel, count, dtype, width) for count in (200, 1)), _frames(kernel, dtype)]
        worst = float(np.max(parts))  # NaN if one of them is
    except Exception as error:  # whatever a compiler or driver says
        return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0][:200]}"
    allowed = TOLERANCE[jnp.dtype(dtype).itemsize]
    return None if worst <= allowed else f"differs from the reference by {worst:.2g} of its size, allowed {allowed:.2g}"


def _ranges(kernel: Kernel, count: int, dtype: Any, width: int) -> float:
    """Attention of `count` queries over random ranges of two streams: the worst relative difference."""
    rng = np.random.default_rng(count)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    kv_heads, repeats, lengths = 2, 7, (4096, 304)
    streams = tuple(KVCache(*(normal(2, kv_heads, length, width) for _ in "kv")) for length in lengths)
    q = normal(count, kv_heads * repeats, width)
    bounds = np.sort(np.stack([rng.integers(0, length + 1, (2, count)) for length in lengths]), axis=1)
    k_start, k_end = jnp.asarray(bounds[:, 0], jnp.int32), jnp.asarray(bounds[:, 1], jnp.int32)
    reads = dispatch.plan_attention(kernel, k_start, k_end, heads=q.shape[1], streams=streams)
    got, _ = jax.jit(dispatch.attend)(q, streams, reads, layer=1)
    want, _ = jax.jit(partial(reference.attend, layer=1))(q, streams, k_start, k_end)
    return _difference(got, want)


def _frames(kernel: Kernel, dtype: Any) -> float:
    """Full attention within two frames of SigLIP's shape: the worst relative difference."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 729, 2, 72)), dtype) for _ in "qkv")
    run = jax.jit(dispatch.full_attention, static_argnums=0)
    got, want = run(kernel, q, k, v), run(dispatch.REFERENCE, q, k, v)
    return _difference(got, want)


def _difference(got: jax.Array, want: jax.Array) -> float:
    """The worst ‖got − want‖ / ‖want‖ along the last axis; where nothing was seen, both must be zero."""
    got, want = (np.asarray(a.astype(jnp.float32)) for a in (got, want))
    size = np.linalg.norm(want, axis=-1)
    return float(np.max(np.linalg.norm(got - want, axis=-1) / np.where(size > 0, size, 1e-9)))
