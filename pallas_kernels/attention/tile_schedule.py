"""What each tile of query rows reads: the integers that every kernel is driven by.

A kernel sees *rows*, not queries: the R query heads that share a key head lie side by side, so row r of a
key head is head r % R of query r // R, and rows are cut into tiles. An *item* is one piece of work: one
tile of rows and, per stream, one contiguous range of keys. Usually there is an item per tile; where tiles
are too few to fill a machine, or a tile reads several runs of keys, a tile has several items whose
results are merged by log-sum-exp.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

EVERYTHING = 2**30
"""A row's stop where only its item bounds what it sees."""


class TileSchedule(NamedTuple):
    """Tables of T items over S streams and Q tiles of rows; int32.

    query [T]: the tile of rows an item takes.
    first, stop [S, T]: keys outside first ≤ index < stop are not of this item.
    clear_first, clear_stop [S, T]: every row of the tile sees all keys in between, so a kernel need not
      mask there (rows that see nothing at all are not asked; `attend` blanks them).
    row_starts, row_stops [S, Q, rows]: what each row sees.
    """

    q_tile: jax.Array
    item_start: jax.Array
    item_end: jax.Array
    full_start: jax.Array
    full_end: jax.Array
    row_start: jax.Array
    row_end: jax.Array


def tiled_rows(per_query: jax.Array, repeats: int, rows: int) -> jax.Array:
    """Per-query integers [S, N] → per-row [S, Q, rows], padded with zeros."""
    count = per_query.shape[1] * repeats
    per_row = jnp.pad(jnp.repeat(per_query, repeats, axis=1), ((0, 0), (0, -count % rows)))
    return rearrange(per_row, "s (q r) -> s q r", r=rows)


def schedule_tiles(k_start: jax.Array, k_end: jax.Array, repeats: int, rows: int) -> TileSchedule:
    """One item per tile, from the key ranges [S, N] of queries. `repeats`: query heads per key head."""
    row_start, row_end = (tiled_rows(a, repeats, rows) for a in (k_start, k_end))
    here = row_end > row_start
    item_start = jnp.min(jnp.where(here, row_start, EVERYTHING), axis=-1)
    item_end = jnp.max(jnp.where(here, row_end, 0), axis=-1)
    item_start = jnp.minimum(item_start, item_end)
    # A row that sees keys of another stream but none of this one forbids unmasked keys here.
    asked = here.any(axis=0)
    full_start = jnp.max(jnp.where(asked, jnp.where(here, row_start, EVERYTHING), 0), axis=-1)
    full_end = jnp.min(jnp.where(asked, row_end, EVERYTHING), axis=-1)
    full_start, full_end = jnp.clip(full_start, item_start, item_end), jnp.clip(full_end, item_start, item_end)
    q_tile = jnp.arange(row_start.shape[1], dtype=jnp.int32)
    return TileSchedule(q_tile, item_start, item_end, full_start, jnp.maximum(full_start, full_end), row_start, row_end)


def split_items(work: TileSchedule, pieces: int, multiple: int) -> TileSchedule:
    """Cut every item into `pieces` of about equal key counts (multiples of `multiple`): items [T · pieces]."""
    if pieces == 1:
        return work
    share = -(-(work.item_end - work.item_start) // (pieces * multiple)) * multiple
    low = work.item_start[..., None] + share[..., None] * jnp.arange(pieces)

    def whole(a):
        return a[..., None]

    def flat(a):
        return rearrange(a, "s t p -> s (t p)").astype(jnp.int32)

    item_start = jnp.minimum(low, whole(work.item_end))
    item_end = jnp.minimum(low + whole(share), whole(work.item_end))
    full_start = jnp.clip(whole(work.full_start), item_start, item_end)
    full_end = jnp.maximum(jnp.clip(whole(work.full_end), item_start, item_end), full_start)
    return work._replace(
        q_tile=jnp.repeat(work.q_tile, pieces),
        item_start=flat(item_start),
        item_end=flat(item_end),
        full_start=flat(full_start),
        full_end=flat(full_end),
    )


def merge_partials(out: jax.Array, lse: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Merge partial results over `axis` of lse; out has one more axis (the width) at the end.

    Attention over a union of disjoint key sets from attention over each: exact up to rounding. A part
    that saw no key has lse −inf and counts for nothing.
    """
    peak = jnp.max(lse, axis=axis, keepdims=True)
    weights = jnp.exp(lse - jnp.where(jnp.isfinite(peak), peak, 0.0))
    total = jnp.sum(weights, axis=axis)
    mixed = jnp.sum(out.astype(jnp.float32) * weights[..., None], axis=axis if axis >= 0 else axis - 1)
    seen = total > 0
    safe = jnp.where(seen, total, 1.0)
    return mixed / safe[..., None], jnp.where(seen, jnp.log(safe) + jnp.squeeze(peak, axis), -jnp.inf)


def pack_rows(q: jax.Array, kv_heads: int, rows: int) -> jax.Array:
    """Queries [N, H, D] → tiles of rows [K, Q, rows, D], the last one padded with zeros."""
    packed = rearrange(q, "n (k r) d -> k (n r) d", k=kv_heads)
    packed = jnp.pad(packed, ((0, 0), (0, -packed.shape[1] % rows), (0, 0)))
    return rearrange(packed, "k (q r) d -> k q r d", r=rows)


def unpack_rows(tiles: jax.Array, count: int, repeats: int) -> jax.Array:
    """Tiles [K, Q, rows, …] → [count, K · repeats, …]."""
    flat = tiles.reshape(tiles.shape[0], -1, *tiles.shape[3:])[:, : count * repeats]
    return rearrange(flat, "k (n r) ... -> n (k r) ...", r=repeats)
