"""The work of an attention kernel as tables of integers: which key ranges each tile of query rows reads.

A kernel sees *rows*: the query heads that share a key head are packed side by side, so that row r of a key head is
head r % repeats of query r // repeats. Rows are cut into tiles. An *item* is one unit of work: one tile of rows and, in
each stream, one contiguous range of keys. A tile usually has one item. It has several where there are too few tiles to
fill the device, or where it reads several segments; their results are merged by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, Shaped

EVERYTHING = 2**30
"""The end of a row's range where only the item bounds it."""


class TileSchedule(NamedTuple):
    """int32 tables of T items over S streams and Q tiles of rows.

    q_tile [T]: the tile of rows that each item takes.
    item_start, item_end [S, T]: the item covers the keys item_start ≤ index < item_end.
    unmasked_start, unmasked_end [S, T]: every row of the tile sees all keys in between, so that a kernel needs no mask there.
      (Rows that see nothing at all are not counted; `attend` zeroes them.)
    row_start, row_end [S, Q, rows]: the range of keys that each row sees.
    first_item [P + 1]: the items first_item[p] ≤ index < first_item[p + 1] are run by one program, for each key head; only for
      kernels that do so (`DeviceTiles.persistent`). None: a kernel chooses.
    """

    q_tile: jax.Array
    item_start: jax.Array
    item_end: jax.Array
    unmasked_start: jax.Array
    unmasked_end: jax.Array
    row_start: jax.Array
    row_end: jax.Array
    first_item: jax.Array | None = None


def tile_rows(per_query: Shaped[Array, "S N"], repeats: int, rows: int) -> Shaped[Array, "S Q rows"]:
    """Spread a number or a flag per query over tiles of rows, padded with zeros."""
    padding = -per_query.shape[1] * repeats % rows
    per_row = jnp.pad(jnp.repeat(per_query, repeats, axis=1), ((0, 0), (0, padding)))
    return rearrange(per_row, "s (q r) -> s q r", r=rows)


def schedule_tiles(k_start: Int[Array, "S N"], k_end: Int[Array, "S N"], repeats: int, rows: int) -> TileSchedule:
    """One item per tile of `rows` rows, from the key ranges of N queries. repeats: query heads per key head."""
    row_start, row_end = (tile_rows(a, repeats, rows) for a in (k_start, k_end))
    visible = row_end > row_start
    item_start = jnp.min(jnp.where(visible, row_start, EVERYTHING), axis=-1)
    item_end = jnp.max(jnp.where(visible, row_end, 0), axis=-1)
    item_start = jnp.minimum(item_start, item_end)
    # A row that sees keys of another stream but none of this one forbids unmasked keys here.
    used = visible.any(axis=0)
    unmasked_start = jnp.max(jnp.where(used, jnp.where(visible, row_start, EVERYTHING), 0), axis=-1)
    unmasked_end = jnp.min(jnp.where(used, row_end, EVERYTHING), axis=-1)
    unmasked_start, unmasked_end = (jnp.clip(bound, item_start, item_end) for bound in (unmasked_start, unmasked_end))
    q_tile = jnp.arange(row_start.shape[1], dtype=jnp.int32)
    return TileSchedule(
        q_tile, item_start, item_end, unmasked_start, jnp.maximum(unmasked_start, unmasked_end), row_start, row_end
    )


def split_items(schedule: TileSchedule, pieces: int, multiple: int) -> TileSchedule:
    """Split every item into `pieces` with about equally many keys, in multiples of `multiple`: T · pieces items."""
    if pieces == 1:
        return schedule
    start, end = schedule.item_start[..., None], schedule.item_end[..., None]
    size = -(-(end - start) // (pieces * multiple)) * multiple
    low = start + size * jnp.arange(pieces)
    item_start, item_end = jnp.minimum(low, end), jnp.minimum(low + size, end)
    unmasked_start = jnp.clip(schedule.unmasked_start[..., None], item_start, item_end)
    unmasked_end = jnp.maximum(jnp.clip(schedule.unmasked_end[..., None], item_start, item_end), unmasked_start)

    def flat(a: jax.Array) -> jax.Array:
        return rearrange(a, "s t p -> s (t p)").astype(jnp.int32)

    return schedule._replace(
        q_tile=jnp.repeat(schedule.q_tile, pieces),
        item_start=flat(item_start),
        item_end=flat(item_end),
        unmasked_start=flat(unmasked_start),
        unmasked_end=flat(unmasked_end),
    )


def merge_partials(
    partials: Sequence[tuple[Float[Array, ...], Float[Array, ...]]], axis: int
) -> tuple[Float[Array, ...], Float[Array, ...]]:
    """Merge attention over disjoint sets of keys into attention over their union.

    Args:
      partials: pairs (out, lse), each with one or more partial results along `axis` of lse. `out` has one more axis than
        `lse`, the head width, at its end. A part that saw no key has the log-sum-exp −inf and weighs nothing.
      axis: not negative.

    Returns:
      out and log-sum-exp without `axis`, in fp32; exact up to rounding.
    """
    maximum = jnp.max(jnp.stack([jnp.max(lse, axis=axis) for _, lse in partials]), axis=0)
    finite = jnp.expand_dims(jnp.where(jnp.isfinite(maximum), maximum, 0.0), axis)
    normalizer, weighted = jnp.zeros(()), jnp.zeros(())
    for out, lse in partials:  # not concatenated: XLA reads `out` where it lies
        weights = jnp.exp(lse - finite)
        normalizer += jnp.sum(weights, axis=axis)
        weighted += jnp.sum(out.astype(jnp.float32) * weights[..., None], axis=axis)
    seen = normalizer > 0
    normalizer = jnp.where(seen, normalizer, 1.0)
    return weighted / normalizer[..., None], jnp.where(seen, jnp.log(normalizer) + maximum, -jnp.inf)


def pack_rows(q: Float[Array, "N H D"], kv_heads: int, rows: int) -> Float[Array, "K Q rows D"]:
    """Pack queries into tiles of rows; the last tile is padded with zeros."""
    packed = rearrange(q, "n (k r) d -> k (n r) d", k=kv_heads)
    packed = jnp.pad(packed, ((0, 0), (0, -packed.shape[1] % rows), (0, 0)))
    return rearrange(packed, "k (q r) d -> k q r d", r=rows)


def unpack_rows(tiles: Float[Array, "K Q rows ..."], count: int, repeats: int) -> Float[Array, "N H ..."]:
    """The inverse of `pack_rows`, for `count` queries."""
    flat = tiles.reshape(tiles.shape[0], -1, *tiles.shape[3:])[:, : count * repeats]
    return rearrange(flat, "k (n r) ... -> n (k r) ...", r=repeats)
