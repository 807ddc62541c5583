"""Range attention in plain jnp: the reference of every kernel, and the path of machines without one.

Flash attention in tiles: memory is one tile of logits, work is the tiles that ranges touch. Ranges are
a few integers per query, so there are no block lists and no masks beyond the compare in a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from pallas_kernels.attention.tile_schedule import TileSchedule

_FLOOR = -1e30  # stands for "no key seen yet" where −inf would make NaN


class KVCache(NamedTuple):
    """Keys (rotated) and values of all layers: [L, K, S, D] each."""

    k: jax.Array
    v: jax.Array

    def write(self, k: jax.Array, v: jax.Array, layer: jax.Array, offset: jax.Array) -> KVCache:
        """The stream with rows k, v [N, K, D] put at `offset` of one layer."""

        def put(cache, rows):
            return jax.lax.dynamic_update_slice(
                cache, jnp.swapaxes(rows, 0, 1)[None].astype(cache.dtype), (layer, 0, offset, 0)
            )

        return KVCache(put(self.k, k), put(self.v, v))


def _tile(array: jax.Array, layer: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """[K, size, D] of one layer, without a copy of the layer."""
    _, kv_heads, _, width = array.shape
    return jax.lax.dynamic_slice(array, (layer, 0, start, 0), (1, kv_heads, size, width))[0]


def _logits(q: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.einsum("knd,ksd->kns", q, k, preferred_element_type=jnp.float32)


def _attend_tiles(q, k_start, k_end, streams, layer, key_tiles):
    """Tiles of packed rows, abreast: q [A·K, N, D] scaled; starts, stops [streams, A, N] → out [A·K, N, D], lse [A·K, N]."""
    (batch, rows, width), abreast = q.shape, k_start.shape[1]
    carry = (
        jnp.full((batch, rows), _FLOOR, jnp.float32),
        jnp.zeros((batch, rows), jnp.float32),
        jnp.zeros((batch, rows, width), jnp.float32),
    )
    for stream, low, high, key_tile in zip(streams, k_start, k_end, key_tiles, strict=True):
        size = min(key_tile, stream.k.shape[2])
        if size == 0:
            continue
        high = jnp.minimum(high, stream.k.shape[2])
        # Tiles are counted back from the last key that any row sees, so that they lie within the stream, and are the same
        # whatever room it has behind that key.
        end = jnp.max(jnp.where(high > low, high, 0), axis=1)
        item_start = jnp.min(jnp.where(high > low, low, end[:, None]), axis=1)
        tiles = jnp.max(-(-(end - item_start) // size))

        def body(tile, carry, stream=stream, low=low, high=high, size=size, end=end):
            peak, total, out = carry
            item_end = end - tile * size
            begin = jnp.maximum(item_end - size, 0)
            index = begin[:, None, None] + jnp.arange(size)
            seen = (index >= low[..., None]) & (index < jnp.minimum(high, item_end[:, None])[..., None])

            def cut(part):
                return jnp.concatenate([_tile(part, layer, begin[n], size) for n in range(abreast)])

            # Where nothing was seen yet, −inf less the floor still is a weight of 0.
            logits = jnp.where(
                repeat(seen, "a n s -> (a k) n s", k=batch // abreast), _logits(q, cut(stream.k)), -jnp.inf
            )
            new_peak = jnp.maximum(peak, logits.max(axis=-1))
            weights = jnp.exp(logits - new_peak[..., None])
            shrink = jnp.exp(peak - new_peak)
            values = cut(stream.v)
            mixed = jnp.einsum("kns,ksd->knd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
            return new_peak, total * shrink + weights.sum(axis=-1), out * shrink[..., None] + mixed

        carry = jax.lax.fori_loop(0, tiles, body, carry)
    peak, total, out = carry
    seen_any = total > 0
    total = jnp.where(seen_any, total, 1.0)
    return out / total[..., None], jnp.where(seen_any, peak + jnp.log(total), -jnp.inf)


def _pack(q: jax.Array, kv_heads: int, scale: float) -> jax.Array:
    """[N, H, D] → [K, N·R, D]: the query heads of one key head lie side by side as rows."""
    return rearrange(q * jnp.asarray(scale, q.dtype), "n (k r) d -> k (n r) d", k=kv_heads)


def attend(
    q: jax.Array,
    streams: Sequence[KVCache],
    k_start: jax.Array,
    k_end: jax.Array,
    *,
    layer: jax.Array | int = 0,
    scale: float | None = None,
    query_tile: int = 512,
    key_tile: int | Sequence[int] = 512,
    abreast: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention of each query over its key ranges.

    Query n sees the keys starts[s, n] ≤ index < stops[s, n] of every stream s of layer `layer`.

    Shapes: q [N, H, D] (rotated); streams of [L, K, S, D] with K dividing H; starts, stops int32
    [len(streams), N]. Returns out [N, H, D] in q's dtype and the log-sum-exp fp32 [N, H], by which
    partial results merge. A query that sees no key gets zeros and −inf. Accumulates in fp32.

    query_tile, key_tile: queries and keys of a tile, the latter for all streams or for each; abreast: tiles of queries
    that go side by side, in the batch dimension of the same products.
    """
    count, heads, width = q.shape
    kv_heads = streams[0].k.shape[1]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads evenly")
    if k_start.shape != (len(streams), count) or k_end.shape != k_start.shape:
        raise ValueError(f"starts and stops must be [{len(streams)}, {count}], not {k_start.shape} and {k_end.shape}")
    repeats = heads // kv_heads
    # Turns of equal size, of tiles of equal size, so that the last is not mostly padding.
    turns = -(-count // (query_tile * abreast))
    abreast = -(-count // (turns * query_tile))
    tile = -(-count // (turns * abreast))
    padding = turns * abreast * tile - count
    key_tiles = (key_tile,) * len(streams) if isinstance(key_tile, int) else key_tile
    q = jnp.pad(_pack(q, kv_heads, width**-0.5 if scale is None else scale), ((0, 0), (0, padding * repeats), (0, 0)))
    q_tiles = rearrange(q, "k (t a n) d -> t (a k) n d", a=abreast, n=tile * repeats)

    def per_tile(ranges: jax.Array) -> jax.Array:
        padded = jnp.pad(ranges, ((0, 0), (0, padding)))
        return repeat(padded, "s (t a n) -> t s a (n r)", a=abreast, n=tile, r=repeats)

    def work(args):
        return _attend_tiles(*args, streams, layer, key_tiles)

    out, lse = jax.lax.map(work, (q_tiles, per_tile(k_start), per_tile(k_end)))
    out = rearrange(out, "t (a k) (n r) d -> (t a n) (k r) d", a=abreast, r=repeats)[:count]
    return out.astype(q.dtype), rearrange(lse, "t (a k) (n r) -> (t a n) (k r)", a=abreast, r=repeats)[:count]


def key_mass(
    q: jax.Array,
    stream: KVCache,
    k_end: jax.Array,
    lse: jax.Array,
    weights: jax.Array,
    *,
    layer: jax.Array | int = 0,
    scale: float | None = None,
    key_tile: int = 512,
) -> jax.Array:
    """How much attention each key of a stream receives, summed over queries and heads.

    Shapes: q [N, H, D]; stream [L, K, S, D]; stops int32 [N] (keys index < stop are seen); lse [N, H] as
    `attend` gave it over *all* streams; weights fp32 [N, H], what a query's head counts for. Returns fp32 [S].
    """
    kv_heads, width = stream.k.shape[1], q.shape[-1]
    repeats = q.shape[1] // kv_heads
    packed = _pack(q, kv_heads, width**-0.5 if scale is None else scale)

    def as_rows(a):
        return rearrange(a, "n (k r) -> k (n r)", k=kv_heads)

    row_lse, row_weight, row_stop = as_rows(lse), as_rows(weights), repeat(k_end, "n -> (n r)", r=repeats)
    capacity = stream.k.shape[2]
    size = min(key_tile, capacity)

    def body(tile, mass):
        begin = jnp.minimum(tile * size, capacity - size)
        index = begin + jnp.arange(size)
        seen = (index < row_stop[:, None]) & (index >= tile * size)
        share = jnp.where(seen, jnp.exp(_logits(packed, _tile(stream.k, layer, begin, size)) - row_lse[..., None]), 0.0)
        received = jnp.einsum("kns,kn->s", share, row_weight)
        return jax.lax.dynamic_update_slice(mass, jax.lax.dynamic_slice(mass, (begin,), (size,)) + received, (begin,))

    return jax.lax.fori_loop(0, -(-jnp.max(k_end) // size), body, jnp.zeros(capacity, jnp.float32))


def attend_tiles(
    q: jax.Array,
    streams: Sequence[KVCache],
    layer: jax.Array | int,
    work: TileSchedule,
    *,
    scale: float,
    out_dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array]:
    """What every kernel computes, in the plainest terms (all keys of all streams, masked): for tests.

    Shapes: q [K, Q, rows, D] (rotated, unscaled); streams of [L, K, S, D]; `work` as in `work.TileSchedule`, of T
    items. Returns out [K, T, rows, D] in `out_dtype` and the natural log-sum-exp fp32 [K, T, rows]: zeros
    and −inf where a row sees no key of its item.
    """

    def item(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows, seen, keys, values = q[:, work.q_tile[index]], [], [], []
        for number, stream in enumerate(streams):
            key = jnp.arange(stream.k.shape[2])
            within = (key >= work.item_start[number, index]) & (key < work.item_end[number, index])
            low, high = (bound[number, work.q_tile[index]][:, None] for bound in (work.row_start, work.row_end))
            seen.append(within & (key >= low) & (key < high))
            keys.append(stream.k[layer])
            values.append(stream.v[layer])
        mask, k, v = jnp.concatenate(seen, 1), jnp.concatenate(keys, 1), jnp.concatenate(values, 1)
        logits = jnp.where(mask, _logits(rows, k) * scale, -jnp.inf)
        lse = jax.nn.logsumexp(logits, axis=-1)
        weights = jnp.where(mask, jnp.exp(logits - jnp.where(jnp.isfinite(lse), lse, 0.0)[..., None]), 0.0)
        return jnp.einsum("kns,ksd->knd", weights, v.astype(jnp.float32)).astype(out_dtype), lse

    out, lse = jax.lax.map(item, jnp.arange(work.q_tile.shape[0]))
    return jnp.swapaxes(out, 0, 1), jnp.swapaxes(lse, 0, 1)
