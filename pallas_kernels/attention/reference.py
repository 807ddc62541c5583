"""Range attention in plain jnp: the reference of every kernel, and what runs on devices without one.

It is flash attention in tiles under the kernels' contract (`attend_tiles`): memory is one tile of logits for each tile
of rows that is worked on in parallel, and work is the key tiles that the ranges touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.tile_schedule import TileSchedule
from pallas_kernels.attention.tile_sizes import TileSizes
from pallas_kernels.kv_cache import KVCache

WIDTH_MULTIPLE = 1
"""Head widths must be multiples of this; others are padded with zeros."""
READS_INT8 = True
"""Whether caches may be in int8, with scales."""
_M_INIT = -1e30  # stands for "no key seen yet", where −inf would make NaN


def refusal(*, dtype: jnp.dtype, width: int, rows: int) -> str | None:
    """The reference takes every dtype, head width and tile."""
    return None


def attend_tiles(
    q: Float[Array, "K Q rows D"],
    streams: Sequence[KVCache],
    layer: Int[Array, ""] | int,
    schedule: TileSchedule,
    *,
    scale: float,
    out_dtype: Any,
    tiles: TileSizes = TileSizes(rows=72, keys=512),
    interpret: Any = False,
) -> tuple[Float[Array, "K T rows D"], Float[Array, "K T rows"]]:
    """Attention of each item's rows over its key ranges: what every kernel computes.

    Args:
      q: rotated, unscaled.
      streams: caches [L, K, S, D].
      schedule: T items; see `TileSchedule`.
      tiles: `keys` and `other_keys` of a key tile, and how many items are worked on in `parallel`, in the batch
        dimension of the same products.
      interpret: not used; part of the kernels' signature.

    Returns:
      out in `out_dtype` and the natural log-sum-exp in fp32: zeros and −inf where a row sees no key of its item. A kernel
      may leave out the rows from `tiles.kept` on.
    """
    items = schedule.q_tile.shape[0]
    turns = -(-items // tiles.parallel)
    parallel = -(-items // turns)  # turns of equal size, so that the last one is not mostly padding
    key_tiles = [tiles.keys, *[tiles.other_keys or tiles.keys] * (len(streams) - 1)]

    def by_turn(table: jax.Array) -> jax.Array:
        padded = jnp.pad(table, [(0, 0)] * (table.ndim - 1) + [(0, turns * parallel - items)])
        return rearrange(padded, "... (t a) -> t ... a", a=parallel)

    def one_turn(tables: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q_tile, start, end = tables
        low = jnp.maximum(schedule.row_start[:, q_tile], start[..., None])
        high = jnp.minimum(schedule.row_end[:, q_tile], end[..., None])
        rows = rearrange(q[:, q_tile] * jnp.asarray(scale, q.dtype), "k a n d -> (a k) n d")
        out, lse = _attend_in_parallel(rows, low, high, streams, layer, key_tiles)
        return out.astype(out_dtype), lse

    tables = (by_turn(schedule.q_tile), by_turn(schedule.item_start), by_turn(schedule.item_end))
    kv_heads, _, rows, width = q.shape
    initial = (  # of rows that see no key
        jnp.zeros((turns, parallel * kv_heads, rows, width), out_dtype),
        jnp.full((turns, parallel * kv_heads, rows), -jnp.inf, jnp.float32),
    )
    # Of the calls of many layers, each makes its array when it has its queries, not at the start of the program.
    q, initial = jax.lax.optimization_barrier((q, initial))

    def body(turn: jax.Array, results: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        found = one_turn(jax.tree.map(lambda table: table[turn], tables))
        return jax.tree.map(lambda whole, part: whole.at[turn].set(part), results, found)

    # Turns after the last one with any key are skipped: rows of padding are sorted last.
    busy = (tables[2] > tables[1]).any(axis=(1, 2))
    turns_with_keys = jnp.max(jnp.where(busy, jnp.arange(turns) + 1, 0))
    out, lse = jax.lax.fori_loop(0, turns_with_keys, body, initial)
    out, lse = (rearrange(part, "t (a k) n ... -> k (t a) n ...", a=parallel)[:, :items] for part in (out, lse))
    return out, lse


def _attend_in_parallel(
    q: jax.Array,
    low: jax.Array,
    high: jax.Array,
    streams: Sequence[KVCache],
    layer: jax.Array | int,
    key_tiles: Sequence[int],
) -> tuple[jax.Array, jax.Array]:
    """A items at once: q [A·K, rows, D], scaled; low, high [S, A, rows] → out [A·K, rows, D], lse [A·K, rows]."""
    (batch, rows, width), parallel = q.shape, low.shape[1]
    carry = (
        jnp.full((batch, rows), _M_INIT, jnp.float32),
        jnp.zeros((batch, rows), jnp.float32),
        jnp.zeros((batch, rows, width), jnp.float32),
    )
    for stream, start, stop, key_tile in zip(streams, low, high, key_tiles, strict=True):
        size = min(key_tile, stream.k.shape[2])
        if size == 0:
            continue
        stop = jnp.minimum(stop, stream.k.shape[2])
        # Tiles are counted back from the last key that any row sees. So they lie within the stream, and are the same
        # whatever capacity it has behind that key.
        end = jnp.max(jnp.where(stop > start, stop, 0), axis=1)
        first = jnp.min(jnp.where(stop > start, start, end[:, None]), axis=1)
        steps = jnp.max(-(-(end - first) // size))

        def body(step, carry, stream=stream, start=start, stop=stop, size=size, end=end):
            m_i, l_i, acc = carry
            tile_end = end - step * size
            begin = jnp.maximum(tile_end - size, 0)
            index = begin[:, None, None] + jnp.arange(size)
            visible = (index >= start[..., None]) & (index < jnp.minimum(stop, tile_end[:, None])[..., None])

            def cut(part: jax.Array) -> jax.Array:
                return jnp.concatenate([_key_tile(part, layer, begin[n], size) for n in range(parallel)])

            def scaled(columns: jax.Array, scale: jax.Array | None) -> jax.Array:
                return columns if scale is None else columns * jnp.swapaxes(cut(scale), 1, 2)

            visible = repeat(visible, "a n s -> (a k) n s", k=batch // parallel)
            # Where nothing was seen yet, −inf minus the initial maximum still gives a weight of 0.
            logits = scaled(_logits(q, cut(stream.k).astype(q.dtype)), stream.k_scale)
            logits = jnp.where(visible, logits, -jnp.inf)
            new_m = jnp.maximum(m_i, logits.max(axis=-1))
            weights = jnp.exp(logits - new_m[..., None])
            alpha = jnp.exp(m_i - new_m)
            values, weighted = cut(stream.v).astype(q.dtype), scaled(weights, stream.v_scale).astype(q.dtype)
            added = jnp.einsum("kns,ksd->knd", weighted, values, preferred_element_type=jnp.float32)
            return new_m, l_i * alpha + weights.sum(axis=-1), acc * alpha[..., None] + added

        carry = jax.lax.fori_loop(0, steps, body, carry)
    m_i, l_i, acc = carry
    seen = l_i > 0
    l_i = jnp.where(seen, l_i, 1.0)
    return acc / l_i[..., None], jnp.where(seen, m_i + jnp.log(l_i), -jnp.inf)


def _key_tile(array: jax.Array, layer: jax.Array | int, start: jax.Array, size: int) -> jax.Array:
    """[K, size, D] of one layer, without a copy of the layer."""
    _, kv_heads, _, width = array.shape
    return jax.lax.dynamic_slice(array, (layer, 0, start, 0), (1, kv_heads, size, width))[0]


def _logits(q: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.einsum("knd,ksd->kns", q, k, preferred_element_type=jnp.float32)


def full_attention(
    q: Float[Array, "F N H D"], k: Float[Array, "F N H D"], v: Float[Array, "F N H D"], scale: float
) -> Float[Array, "F N H D"]:
    """Full attention within each of F sequences, with whole matrices of logits in fp32."""
    logits = jnp.einsum("fnhd,fmhd->fhnm", q, k, preferred_element_type=jnp.float32) * scale
    return jnp.einsum("fhnm,fmhd->fnhd", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)


def key_mass(
    q: Float[Array, "N H D"],
    stream: KVCache,
    k_end: Int[Array, " N"],
    lse: Float[Array, "N H"],
    weights: Float[Array, "N H"],
    *,
    layer: Int[Array, ""] | int = 0,
    scale: float | None = None,
    key_tile: int = 512,
) -> Float[Array, " S"]:
    """The attention that each key of a stream receives, summed over queries and heads, in fp32.

    Args:
      q: rotated queries, which see the keys index < k_end of the stream [L, K, S, D].
      lse: log-sum-exp that `attend` returned over *all* streams.
      weights: fp32 weight of each query and head in the sum.
    """
    kv_heads, width = stream.k.shape[1], q.shape[-1]
    repeats = q.shape[1] // kv_heads
    scaled = q * jnp.asarray(width**-0.5 if scale is None else scale, q.dtype)
    rows = rearrange(scaled, "n (k r) d -> k (n r) d", k=kv_heads)
    row_lse, row_weight = (rearrange(a, "n (k r) -> k (n r)", k=kv_heads) for a in (lse, weights))
    row_end = repeat(k_end, "n -> (n r)", r=repeats)
    capacity = stream.k.shape[2]
    size = min(key_tile, capacity)

    def body(step, mass):
        begin = jnp.minimum(step * size, capacity - size)
        index = begin + jnp.arange(size)
        visible = (index < row_end[:, None]) & (index >= step * size)
        logits = _logits(rows, _key_tile(stream.k, layer, begin, size).astype(rows.dtype))
        if stream.k_scale is not None:
            logits = logits * jnp.swapaxes(_key_tile(stream.k_scale, layer, begin, size), 1, 2)
        share = jnp.where(visible, jnp.exp(logits - row_lse[..., None]), 0.0)
        received = jnp.einsum("kns,kn->s", share, row_weight)
        return jax.lax.dynamic_update_slice(mass, jax.lax.dynamic_slice(mass, (begin,), (size,)) + received, (begin,))

    return jax.lax.fori_loop(0, -(-jnp.max(k_end) // size), body, jnp.zeros(capacity, jnp.float32))
