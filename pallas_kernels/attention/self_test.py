"""A kernel's self-test: small problems on the present device, compared with the reference."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pallas_kernels.attention import dispatch
from pallas_kernels.attention import gradient as differentiable
from pallas_kernels.attention.kernel import REFERENCE, Kernel
from pallas_kernels.kv_cache import KVCache

QUERIES = (200, 1)
"""Numbers of queries, besides those that fill one of each of the kernel's tiles."""
KEYS = ((4096, 304), (1024, 304, 512, 64))
"""Keys of each stream: as in pre-filling, and as a question reads a bi-level cache and its own tokens."""
FRAMES = (2, 729, 16, 72)
"""Frames, patches, heads and width of the vision tower's shape."""
_REPEATS = 7
TOLERANCE = {2: 3e-2, 4: 1e-3}
"""Largest relative error of the output of any head of a query, by the bytes of the dtype."""


def self_test(
    kernel: Kernel, *, dtype: DTypeLike, width: int, cache_dtype: DTypeLike | None = None, gradient: bool = False
) -> str | None:
    """Test a kernel with each of its tiles over two and four streams, with full attention within frames, and with what not
    every kernel has: programs of several items, ranges that are moved.

    The key ranges start and end anywhere and are split into items, as for long videos. A kernel that hangs does not return.

    Args:
      kernel: from `select.choose_kernel`.
      dtype: of queries, and of caches unless `cache_dtype` is given.
      width: head width D.
      cache_dtype: of caches.
      gradient: test the gradient, and nothing else.

    Returns:
      What went wrong, in one line, or None.
    """
    try:
        errors = [_gradient_error(kernel, dtype, width)] if gradient else _errors(kernel, dtype, width, cache_dtype)
        error = float(np.max(errors))  # NaN if one of them is
    except Exception as raised:  # compilers and drivers raise anything
        return f"{type(raised).__name__}: {(str(raised) or 'no message').splitlines()[0][:200]}"
    tolerance = TOLERANCE[jnp.dtype(dtype).itemsize]
    return None if error <= tolerance else f"relative error {error:.2g} against the reference, allowed {tolerance:.2g}"


def _errors(kernel: Kernel, dtype: DTypeLike, width: int, cache_dtype: DTypeLike | None) -> list[float]:
    """The relative errors of all problems but the gradient."""
    cache = dtype if cache_dtype is None else cache_dtype
    counts = {*QUERIES, *(max(1, tile.rows // _REPEATS) for tile in kernel.row_tiles)}
    problems = [(count, KEYS[0]) for count in sorted(counts)] + [(count, KEYS[-1]) for count in QUERIES]
    ranges = (_range_error(kernel, *problem, dtype, width, cache) for problem in problems)
    errors = [*ranges, _moved_error(kernel, dtype, width, cache), _full_error(kernel, dtype)]
    if kernel.persistent:
        errors.append(_range_error(kernel, 1, KEYS[-1], dtype, width, cache, shared=True))
    return errors


def _range_error(
    kernel: Kernel,
    count: int,
    keys: tuple[int, ...],
    dtype: DTypeLike,
    width: int,
    cache_dtype: DTypeLike,
    *,
    shared: bool = False,
) -> float:
    """The largest relative error of `count` queries over random ranges of streams with so many keys.

    shared: as in a decoding step of a persistent kernel: three programs, of which one has no item, and a row multiple of 8 kept.
    """
    rng = np.random.default_rng(count)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    kv_heads = 2
    rows = [[normal(2, kv_heads, length, width) for _ in "kv"] for length in keys]
    streams = tuple(KVCache.of_rows(k, v, cache_dtype) for k, v in rows)
    q = normal(count, kv_heads * _REPEATS, width)
    bounds = np.sort(np.stack([rng.integers(0, length + 1, (2, count)) for length in keys]), axis=1)
    k_start, k_end = jnp.asarray(bounds[:, 0], jnp.int32), jnp.asarray(bounds[:, 1], jnp.int32)

    def attend(kernel: Kernel) -> jax.Array:
        plan = dispatch.plan_attention(kernel, k_start, k_end, heads=q.shape[1], streams=streams)
        if shared and kernel.persistent:
            items = plan.schedule.q_tile.shape[0]
            schedule = plan.schedule._replace(first_item=jnp.asarray([0, items // 3, items // 3, items], jnp.int32))
            plan = replace(plan, schedule=schedule, tiles=replace(plan.tiles, kept=-(-count * _REPEATS // 8) * 8))
        return jax.jit(dispatch.attend)(q, streams, plan, layer=1)[0]

    return _relative_error(attend(kernel), attend(REFERENCE))


def _moved_error(kernel: Kernel, dtype: DTypeLike, width: int, cache_dtype: DTypeLike) -> float:
    """The largest error of log-sum-exps over ranges whose keys are turned by a right angle, or not at all."""
    if not kernel.moves_ranges(width):
        return 0.0
    rng, kv_heads, slots = np.random.default_rng(0), 2, max(KEYS[0])
    k = jnp.asarray(rng.normal(size=(2, kv_heads, slots, width)), dtype)
    cache, q = (
        KVCache.of_rows(k, k, cache_dtype),
        jnp.asarray(rng.normal(size=(kv_heads, 9, width)) * width**-0.5, dtype),
    )
    start = np.sort(rng.integers(0, slots - 4, 21))
    end = np.minimum(start + rng.integers(0, 100, 21), slots)
    turned = np.arange(21) % 2
    tables = (jnp.tile(jnp.asarray(column, jnp.float32)[:, None], (1, width // 2)) for column in (1 - turned, turned))
    got = dispatch.moved_log_sum_exp(kernel, q, cache, 1, start, end, *tables, width=100)
    keys = np.asarray(cache.dequantised(jnp.float32)[0][1])
    both = keys, np.concatenate([-keys[..., width // 2 :], keys[..., : width // 2]], axis=-1)
    logits = [np.einsum("krd,ksd->krs", np.asarray(q.astype(jnp.float32)), each) for each in both]
    with np.errstate(divide="ignore"):
        parts = zip(start, end, turned, strict=True)
        want = np.stack([np.log(np.exp(logits[turn][..., first:last]).sum(axis=-1)) for first, last, turn in parts])
    return float(np.max(np.where(got == want, 0, np.abs(np.asarray(got) - want))))  # −inf where there are no keys


def _full_error(kernel: Kernel, dtype: DTypeLike) -> float:
    """The largest relative error of full attention within frames of SigLIP's shape."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=FRAMES), dtype) for _ in "qkv")
    attend = jax.jit(dispatch.full_attention, static_argnums=0)
    return _relative_error(attend(kernel, q, k, v), attend(REFERENCE, q, k, v))


def _gradient_error(kernel: Kernel, dtype: DTypeLike, width: int) -> float:
    """The largest relative error of the gradients of a head of queries, keys and values."""
    rng, kv_heads = np.random.default_rng(0), 2
    count, lengths = QUERIES[0], KEYS[0]

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    streams = tuple(KVCache(*(normal(1, kv_heads, length, width) for _ in "kv")) for length in lengths)
    q, d_out = (normal(count, kv_heads * _REPEATS, width) for _ in range(2))
    bounds = np.sort(np.stack([rng.integers(0, length + 1, (2, count)) for length in lengths]), axis=1)

    def gradients(kernel: Kernel) -> list[jax.Array]:
        plan = dispatch.plan_attention(kernel, bounds[:, 0], bounds[:, 1], heads=q.shape[1], streams=streams)
        found = jax.jit(lambda q, s: jax.vjp(lambda q, s: differentiable.attend(q, s, plan), q, s)[1](d_out))(
            q, streams
        )
        return [jnp.moveaxis(found[0], 1, 0), *(part[0] for stream in found[1] for part in (stream.k, stream.v))]

    pairs = zip(gradients(kernel), gradients(REFERENCE), strict=True)
    return max(_relative_error(*(a.reshape(a.shape[0], -1) for a in pair)) for pair in pairs)


def _relative_error(got: jax.Array, want: jax.Array) -> float:
    """The largest ‖got − want‖ / ‖want‖ along the last axis; where `want` is zero, `got` must be zero, too."""
    found, expected = (np.asarray(a.astype(jnp.float32)) for a in (got, want))
    size = np.linalg.norm(expected, axis=-1)
    return float(np.max(np.linalg.norm(found - expected, axis=-1) / np.where(size > 0, size, 1e-9)))
