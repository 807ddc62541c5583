"""Range attention with a gradient, for training: any kernel forward, plain jnp tiles backward.

The backward pass is flash attention's (arXiv 2205.14135, algorithm 4): logits are made again tile by tile from what the
forward pass left, its output and log-sum-exp, so memory stays linear in length. Tiles that no query's range touches are
not visited.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from pallas_kernels.attention import dispatch
from pallas_kernels.attention.dispatch import AttentionPlan
from pallas_kernels.attention.reference import KVCache

QUERY_TILE = KEY_TILE = 512
_Sums = list[tuple[jax.Array, jax.Array]]  # gradients of keys and values [K, S, D] fp32, per stream


@jax.custom_vjp
def attend(q: jax.Array, streams: tuple[KVCache, ...], reads: AttentionPlan) -> jax.Array:
    """Softmax attention of each query over its key ranges in streams of one layer, as `dispatch.attend` computes it.

    Shapes: q [N, H, D] (rotated); streams of [1, K, S, D], K dividing H; `reads` from `dispatch.plan_attention`. Returns
    [N, H, D] in q's dtype. Queries, keys and values have gradients, in their dtypes; sums are fp32.
    """
    return dispatch.attend(q, streams, reads)[0]


def _forward(q: jax.Array, streams: tuple[KVCache, ...], reads: AttentionPlan) -> tuple[jax.Array, Any]:
    out, lse = dispatch.attend(q, streams, reads)
    return out, (q, streams, reads, out, lse)


def _backward(saved: Any, towards: jax.Array) -> tuple[jax.Array, tuple[KVCache, ...], AttentionPlan]:
    q, streams, reads, out, lse = saved
    count, heads, width = q.shape
    kv_heads = streams[0].k.shape[1]
    repeats, scale = heads // kv_heads, width**-0.5
    # Softmax takes from each gradient its mean under the weights, which is the output's product with its gradient.
    mean = jnp.sum(towards.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    tile = min(QUERY_TILE, count)
    padding = -count % tile

    def rows(a: jax.Array, fill: float = 0.0) -> jax.Array:
        """[N, H, …] → [tiles, K, rows, …]: query heads of one key head lie side by side, as in the forward pass."""
        a = jnp.pad(a, ((0, padding), *[(0, 0)] * (a.ndim - 1)), constant_values=fill)
        return rearrange(a, "(t n) (k r) ... -> t k (n r) ...", n=tile, k=kv_heads)

    def ranges(a):
        return repeat(jnp.pad(a, ((0, 0), (0, padding))), "s (t n) -> t s (n r)", n=tile, r=repeats)

    blind = jnp.where(jnp.isfinite(lse), lse, jnp.inf)  # rows that see nothing weigh nothing
    tiles = (rows(q), rows(towards), rows(blind, jnp.inf), rows(mean), ranges(reads.k_start), ranges(reads.k_end))

    def one_tile(sums: _Sums, tile_of: tuple) -> tuple[_Sums, jax.Array]:
        dq, sums = jnp.zeros(tile_of[0].shape, jnp.float32), list(sums)
        for number, stream in enumerate(streams):
            dq, sums[number] = _through_keys(tile_of, number, stream, scale, dq, sums[number])
        return sums, dq

    zeros = [tuple(jnp.zeros(a.shape[1:], jnp.float32) for a in stream) for stream in streams]
    sums, dq = jax.lax.scan(one_tile, zeros, tiles)
    dq = rearrange(dq, "t k (n r) d -> (t n) (k r) d", r=repeats)[:count].astype(q.dtype)
    given = tuple(
        KVCache(*(s[None].astype(a.dtype) for s, a in zip(pair, stream, strict=True)))
        for pair, stream in zip(sums, streams, strict=True)
    )
    nothing = jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), reads)
    return dq, given, nothing


def _through_keys(
    tile_of: tuple, number: int, stream: KVCache, scale: float, dq: jax.Array, sums: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Add what one tile of queries [K, rows, D] owes to one stream, and it to them."""
    q, towards, lse, mean, k_start, k_end = tile_of
    low, high = k_start[number], k_end[number]
    capacity = stream.k.shape[2]
    size = min(KEY_TILE, capacity)
    if size == 0:
        return dq, sums
    item_start = jnp.min(jnp.where(high > low, low, capacity))

    def product(spec, a, b):
        return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)

    def body(step: jax.Array, carry: tuple) -> tuple:
        dq, dk, dv = carry
        # The last tile is shifted back to stay inside; keys of the tile before it are left out.
        wanted = item_start + step * size
        begin = jnp.minimum(wanted, capacity - size)
        index = begin + jnp.arange(size)
        seen = (index >= jnp.maximum(low, wanted)[:, None]) & (index < high[:, None])

        def cut(a):
            return jax.lax.dynamic_slice_in_dim(a, begin, size, axis=1)

        k, v = cut(stream.k[0]), cut(stream.v[0])
        weights = jnp.where(seen, jnp.exp(product("knd,ksd->kns", q, k) * scale - lse[..., None]), 0.0)
        owed = weights * (product("knd,ksd->kns", towards, v) - mean[..., None]) * scale
        narrow, owed = weights.astype(v.dtype), owed.astype(k.dtype)

        def add(a, part):
            return jax.lax.dynamic_update_slice_in_dim(a, cut(a) + part, begin, axis=1)

        return (
            dq + product("kns,ksd->knd", owed, k),
            add(dk, product("kns,knd->ksd", owed, q)),
            add(dv, product("kns,knd->ksd", narrow, towards)),
        )

    steps = -(-(jnp.max(high) - item_start) // size)
    dq, dk, dv = jax.lax.fori_loop(0, steps, body, (dq, *sums))
    return dq, (dk, dv)


attend.defvjp(_forward, _backward)
