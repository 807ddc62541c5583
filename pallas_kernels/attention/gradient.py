"""Range attention with a gradient, for training.

The backward pass is flash attention's (arXiv 2205.14135, algorithm 4): logits are recomputed tile by tile from the
forward pass's output and log-sum-exp, so memory stays linear in length. Key tiles outside every query's range are
skipped. A kernel whose backend has `attend_gradients` computes it, otherwise plain jnp, which is also its reference.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.attention import dispatch, tile_schedule
from pallas_kernels.attention.dispatch import AttentionPlan
from pallas_kernels.attention.kernel import Kernel
from pallas_kernels.kv_cache import KVCache

QUERY_TILE = KEY_TILE = 512
_KVGradients = list[tuple[jax.Array, jax.Array]]  # of keys and values [K, S, D] fp32, per stream


@jax.custom_vjp
def attend(q: Float[Array, "N H D"], streams: tuple[KVCache, ...], plan: AttentionPlan) -> Float[Array, "N H D"]:
    """Softmax attention of each query over its key ranges in streams of one layer, as `dispatch.attend` computes it.

    Differentiable in queries, keys and values; gradients have their dtypes, sums are fp32.

    Args:
      q: rotated queries.
      streams: caches [1, K, S, D], K dividing H.
      plan: from `dispatch.plan_attention`.

    Returns:
      Output in q's dtype.
    """
    return dispatch.attend(q, streams, plan)[0]


def _forward(q: jax.Array, streams: tuple[KVCache, ...], plan: AttentionPlan) -> tuple[jax.Array, tuple]:
    out, lse = dispatch.attend(q, streams, plan)
    return out, (q, streams, plan, out, lse)


def refusal(kernel: Kernel, *, dtype: DTypeLike, width: int, rows: int = 0, slots: int = 0) -> str | None:
    """Why plain jnp computes the gradient of a kernel's attention, in one line; None if the kernel does.

    Args:
      dtype: of queries, keys and values.
      width: head width D.
      rows: query rows of a key head; slots: keys of the largest stream.
    """
    of_backend = getattr(kernel.backend, "gradient_refusal", None)
    if of_backend is None:
        return f"the {kernel.name} kernel has no gradient"
    if not kernel.differentiates:
        return f"the self-test of the {kernel.name} kernel's gradient failed"
    return of_backend(dtype=dtype, width=width, rows=rows, slots=slots)


def _backward(residuals: tuple, d_out: jax.Array) -> tuple[jax.Array, tuple[KVCache, ...], AttentionPlan]:
    q, streams, plan, out, lse = residuals
    # The softmax subtracts from each gradient its mean under the weights: the dot product of output and its gradient.
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    lse = jnp.where(jnp.isfinite(lse), lse, jnp.inf)  # all weights of a row that sees no key are 0
    slots = max(stream.slots for stream in streams)
    is_refused = refusal(plan.kernel, dtype=q.dtype, width=q.shape[-1], rows=len(q) * plan.repeats, slots=slots)
    by = _by_tiles if is_refused else _by_kernel
    dq, pairs = by(q, streams, plan, d_out.astype(q.dtype), lse, delta)
    d_streams = tuple(
        KVCache(*(d[None].astype(a.dtype) for d, a in zip(pair, stream[:2], strict=True)))
        for pair, stream in zip(pairs, streams, strict=True)
    )
    d_plan = jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), plan)  # integers have no gradient
    return dq.astype(q.dtype), d_streams, d_plan


def _by_kernel(
    q: jax.Array,
    streams: tuple[KVCache, ...],
    plan: AttentionPlan,
    d_out: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
) -> tuple[jax.Array, _KVGradients]:
    """The gradients of queries [N, H, D] and of each stream, by the kernel's backend."""
    count, heads, width = q.shape
    kv_heads, backend = heads // plan.repeats, plan.kernel.backend
    rows = backend.gradient_rows(count * plan.repeats)
    packed, d_packed = (tile_schedule.pack_rows(a, kv_heads, rows) for a in (q, d_out))

    def of_rows(a: jax.Array, fill: float) -> jax.Array:
        """[N, H] → [K, Q, rows]"""
        flat = rearrange(a, "n (k r) -> k (n r)", k=kv_heads)
        return jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % rows)), constant_values=fill).reshape(kv_heads, -1, rows)

    starts, ends = (tile_schedule.tile_rows(a, plan.repeats, rows) for a in (plan.k_start, plan.k_end))
    dq, pairs = jnp.zeros(packed.shape, jnp.float32), []
    for stream, start, end in zip(streams, starts, ends, strict=True):
        part, dk, dv = backend.attend_gradients(
            packed,
            d_packed,
            of_rows(lse, jnp.inf),
            of_rows(delta, 0.0),
            stream.k[0],
            stream.v[0],
            start,
            end,
            scale=width**-0.5,
            interpret=plan.kernel.interpret,
        )
        dq, pairs = dq + part, [*pairs, (dk, dv)]
    return tile_schedule.unpack_rows(dq, count, plan.repeats), pairs


def _by_tiles(
    q: jax.Array,
    streams: tuple[KVCache, ...],
    plan: AttentionPlan,
    d_out: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
) -> tuple[jax.Array, _KVGradients]:
    """As `_by_kernel`, in plain jnp."""
    count, heads, width = q.shape
    kv_heads = streams[0].k.shape[1]
    repeats, scale = heads // kv_heads, width**-0.5
    tile = min(QUERY_TILE, count)
    padding = -count % tile

    def to_rows(a: jax.Array, fill: float = 0.0) -> jax.Array:
        """[N, H, …] → [tiles, K, rows, …]: query heads that share a key head are adjacent, as in the forward pass."""
        a = jnp.pad(a, ((0, padding), *[(0, 0)] * (a.ndim - 1)), constant_values=fill)
        return rearrange(a, "(t n) (k r) ... -> t k (n r) ...", n=tile, k=kv_heads)

    def ranges_to_rows(a: jax.Array) -> jax.Array:
        return repeat(jnp.pad(a, ((0, 0), (0, padding))), "s (t n) -> t s (n r)", n=tile, r=repeats)

    query_tiles = (
        to_rows(q), to_rows(d_out), to_rows(lse, jnp.inf), to_rows(delta),
        ranges_to_rows(plan.k_start), ranges_to_rows(plan.k_end),
    )  # fmt: skip

    def one_tile(d_streams: _KVGradients, query_tile: tuple) -> tuple[_KVGradients, jax.Array]:
        dq, d_streams = jnp.zeros(query_tile[0].shape, jnp.float32), list(d_streams)
        for index, stream in enumerate(streams):
            dq, d_streams[index] = _tile_gradients(query_tile, index, stream, scale, dq, d_streams[index])
        return d_streams, dq

    zeros = [(jnp.zeros(k.shape[1:], jnp.float32), jnp.zeros(v.shape[1:], jnp.float32)) for k, v, *_ in streams]
    d_streams, dq = jax.lax.scan(one_tile, zeros, query_tiles)
    return rearrange(dq, "t k (n r) d -> (t n) (k r) d", r=repeats)[:count], d_streams


def _tile_gradients(
    query_tile: tuple, index: int, stream: KVCache, scale: float, dq: jax.Array, d_stream: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Add the gradients between one query tile [K, rows, D] and stream `index` to `dq` and to `d_stream` (dk, dv)."""
    q, d_out, lse, delta, k_start, k_end = query_tile
    row_start, row_end = k_start[index], k_end[index]
    capacity = stream.k.shape[2]
    size = min(KEY_TILE, capacity)
    if size == 0:
        return dq, d_stream
    first_key = jnp.min(jnp.where(row_end > row_start, row_start, capacity))

    def product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)

    def body(step: jax.Array, carry: tuple) -> tuple:
        dq, dk, dv = carry
        # A tile that would reach past the stream starts earlier; the keys that it repeats are masked.
        tile_start = first_key + step * size
        start = jnp.minimum(tile_start, capacity - size)
        key = start + jnp.arange(size)
        mask = (key >= jnp.maximum(row_start, tile_start)[:, None]) & (key < row_end[:, None])

        def load(a: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(a, start, size, axis=1)

        k, v = load(stream.k[0]), load(stream.v[0])
        weights = jnp.where(mask, jnp.exp(product("knd,ksd->kns", q, k) * scale - lse[..., None]), 0.0)
        d_logits = weights * (product("knd,ksd->kns", d_out, v) - delta[..., None]) * scale
        weights, d_logits = weights.astype(v.dtype), d_logits.astype(k.dtype)

        def add(a: jax.Array, part: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(a, load(a) + part, start, axis=1)

        return (
            dq + product("kns,ksd->knd", d_logits, k),
            add(dk, product("kns,knd->ksd", d_logits, q)),
            add(dv, product("kns,knd->ksd", weights, d_out)),
        )

    steps = -(-(jnp.max(row_end) - first_key) // size)
    dq, dk, dv = jax.lax.fori_loop(0, steps, body, (dq, *d_stream))
    return dq, (dk, dv)


attend.defvjp(_forward, _backward)
