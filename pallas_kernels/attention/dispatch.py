"""Range attention: one plan for the key ranges of all layers, then the same call for every kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import reference, tile_schedule
from pallas_kernels.attention.kernel import BACKENDS, Kernel
from pallas_kernels.attention.tile_schedule import TileSchedule
from pallas_kernels.attention.tile_sizes import TileSizes
from pallas_kernels.kv_cache import KVCache


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("k_start", "k_end", "schedule"),
    meta_fields=("kernel", "repeats", "tiles", "pieces"),
)
@dataclass(frozen=True)
class AttentionPlan:
    """Queries with one key range per stream, scheduled once for all layers: a pytree.

    k_start, k_end int32 [S, N]: the key ranges; schedule: the same for the kernel; repeats: query heads per key head;
    pieces: items that each tile of rows is split into.
    """

    k_start: jax.Array | Any
    k_end: jax.Array | Any
    schedule: TileSchedule
    kernel: Kernel
    repeats: int
    tiles: TileSizes
    pieces: int


def plan_attention(
    kernel: Kernel,
    k_start: Int[ArrayLike, "S N"],
    k_end: Int[ArrayLike, "S N"],
    *,
    heads: int,
    streams: Sequence[KVCache],
    tiles: TileSizes | None = None,
) -> AttentionPlan:
    """Plan attention of queries that see the keys k_start[s, n] ≤ index < k_end[s, n] of every stream s.

    Where there are too few tiles of rows to fill the device, each is split into several items.

    Args:
      heads: query heads H.
      streams: caches [L, K, *, D], of which only the shapes are used.
      tiles: tile sizes; None: the kernel's for so many rows.

    Raises:
      ValueError: shapes that do not fit together.
    """
    k_start, k_end = jnp.asarray(k_start, jnp.int32), jnp.asarray(k_end, jnp.int32)
    kv_heads, capacity = streams[0].k.shape[1], sum(s.k.shape[2] for s in streams)
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key heads evenly")
    if k_start.ndim != 2 or k_start.shape != k_end.shape or len(k_start) != len(streams):
        raise ValueError(f"k_start and k_end must be [{len(streams)}, queries], not {k_start.shape} and {k_end.shape}")
    repeats = heads // kv_heads
    tiles = tiles or kernel.tiles_for(k_start.shape[1] * repeats)
    schedule = tile_schedule.schedule_tiles(k_start, k_end, repeats, tiles.rows)
    pieces = pieces_per_tile(schedule.q_tile.shape[0] * kv_heads, kernel.concurrent_items, capacity // (4 * tiles.keys))
    schedule = tile_schedule.split_items(schedule, pieces, tiles.keys)
    return AttentionPlan(k_start, k_end, schedule, kernel, repeats, tiles, pieces)


def pieces_per_tile(programs: int, concurrent_items: int, maximum: int, waves: int = 4, filled: float = 0.97) -> int:
    """How many items to split each tile of rows into, so that a device that runs `concurrent_items` at once is
    busy to the end.

    A device works in waves of `concurrent_items`. With `waves` waves or more, items of different lengths even out, and of
    such numbers the least is taken that fills the share `filled` of the places of all waves. Each piece leaves a partial
    result behind, so tiles that make that many waves by themselves are not split, and others at most into three times the
    pieces that make `waves` waves. `maximum` bounds the pieces so that each still has a few key tiles; where it allows
    fewer waves, the most pieces are taken that fill their waves. Where none do, those that fill most are.

    programs: tiles of rows times key heads.
    """
    if programs >= waves * concurrent_items or maximum <= 1:
        return 1

    def share(pieces: int) -> float:
        return programs * pieces / (-(-programs * pieces // concurrent_items) * concurrent_items)

    fewest = -(-waves * concurrent_items // programs)
    tried = range(fewest, min(3 * fewest, maximum) + 1) if fewest < maximum else range(maximum, 0, -1)
    enough = next((pieces for pieces in tried if share(pieces) >= filled), None)
    return enough or max(tried, key=share)


def attend(
    q: Float[Array, "N H D"],
    streams: Sequence[KVCache],
    plan: AttentionPlan,
    *,
    layer: Int[Array, ""] | int = 0,
    scale: float | None = None,
    out_dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "N H D"], Float[Array, "N H"]]:
    """Softmax attention of each query over its key ranges in one layer of the streams.

    Args:
      q: rotated queries, read in the streams' dtype unless that is int8.
      streams: caches [L, K, S, D], K dividing H.
      plan: from `plan_attention`.
      layer: index into the caches' first axis.
      scale: of the logits; None: D^-1/2.
      out_dtype: of the output; None: that of q. float32 for partial results that are merged later.

    Returns:
      out and the natural log-sum-exp in fp32, by which partial results merge. A query that sees no key
      gets zeros and −inf. Sums are fp32.

    Raises:
      ValueError: shapes other than planned, or a dtype or width that the kernel does not take, naming what does.
    """
    _check(q, streams, plan)
    count, heads, width = q.shape
    out_dtype = q.dtype if out_dtype is None else out_dtype
    packed = tile_schedule.pack_rows(q.astype(streams[0].query_dtype(q.dtype)), heads // plan.repeats, plan.tiles.rows)
    out, lse = run_items(
        plan.kernel,
        packed,
        streams,
        layer,
        plan.schedule,
        scale=width**-0.5 if scale is None else scale,
        tiles=plan.tiles,
        out_dtype=out_dtype if plan.pieces == 1 else jnp.float32,
    )
    if plan.pieces > 1:
        out, lse = (a.reshape(a.shape[0], -1, plan.pieces, *a.shape[2:]) for a in (out, lse))
        out, lse = tile_schedule.merge_partials([(out, lse)], axis=2)
    out, lse = (tile_schedule.unpack_rows(a, count, plan.repeats) for a in (out, lse))
    # Kernels do not mask for rows of padding, which see nothing at all.
    seen = (plan.k_end > plan.k_start).any(axis=0)[:, None]
    return jnp.where(seen[..., None], out, 0).astype(out_dtype), jnp.where(seen, lse, -jnp.inf)


def _check(q: jax.Array, streams: Sequence[KVCache], plan: AttentionPlan) -> None:
    """Raise ValueError unless queries and streams have the planned shapes."""
    count, kv_heads = plan.k_start.shape[1], streams[0].k.shape[1]
    if len(streams) != len(plan.k_start):
        raise ValueError(f"ranges of {len(plan.k_start)} streams were planned, not of {len(streams)}")
    if q.ndim != 3 or q.shape[:2] != (count, kv_heads * plan.repeats):
        raise ValueError(f"q must be [{count}, {kv_heads * plan.repeats}, width] as planned, not {list(q.shape)}")
    for stream in streams:
        if stream.k.shape != stream.v.shape or stream.k.shape[1] != kv_heads or stream.k.shape[3] != q.shape[2]:
            raise ValueError(
                f"keys and values must be [layers, {kv_heads}, slots, {q.shape[2]}] like the queries, "
                f"not {list(stream.k.shape)} and {list(stream.v.shape)}"
            )


def run_items(
    kernel: Kernel,
    q: Float[Array, "K Q rows D"],
    streams: Sequence[KVCache],
    layer: Int[Array, ""] | int,
    schedule: TileSchedule,
    *,
    scale: float,
    tiles: TileSizes,
    out_dtype: Any,
) -> tuple[Float[Array, "K T kept D"], Float[Array, "K T kept"]]:
    """`attend_tiles` of a kernel (see `reference.attend_tiles`) for any head width; of the rows that `tiles` keeps.

    Raises:
      ValueError: a dtype, width or tile that the kernel does not take, naming what does.
    """
    width, layer = q.shape[-1], jnp.asarray(layer, jnp.int32)
    if why := refusal(kernel, q.dtype, width, tiles, cache_dtype=streams[0].dtype):
        raise ValueError(why)
    if (padded := _padded(kernel, width)) != width:
        q = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, padded - width)))
        streams, layer = tuple(_widen(stream, layer, padded) for stream in streams), jnp.int32(0)
    out, lse = _jitted(kernel.name)(
        q, tuple(streams), layer, schedule, scale=scale, tiles=tiles, out_dtype=out_dtype, interpret=kernel.interpret
    )
    kept = tiles.kept or tiles.rows
    return out[:, :, :kept, :width], lse[:, :, :kept]


def refusal(kernel: Kernel, dtype: Any, width: int, tiles: TileSizes, *, cache_dtype: Any = None) -> str | None:
    """Why a kernel cannot serve queries of this dtype and head width with these tiles, or None.

    cache_dtype: of keys and values; None: that of the queries.
    """
    dtype = jnp.dtype(dtype)
    cache = dtype if cache_dtype is None else jnp.dtype(cache_dtype)
    if cache == jnp.int8 and not kernel.backend.READS_INT8:
        return f"the {kernel.name} kernel reads no caches in int8: use another kernel, or caches in {dtype.name}"
    return kernel.backend.refusal(dtype=dtype, width=_padded(kernel, width), rows=tiles.rows)


def _padded(kernel: Kernel, width: int) -> int:
    """The head width, rounded up to one that the kernel takes."""
    multiple = kernel.backend.WIDTH_MULTIPLE
    return -(-width // multiple) * multiple


def _widen(stream: KVCache, layer: jax.Array, width: int) -> KVCache:
    """One layer of a stream with heads padded to `width`: a copy, which only odd head widths (no real model) pay."""

    def widen(cache: jax.Array) -> jax.Array:
        one = jax.lax.dynamic_index_in_dim(cache, layer, keepdims=True)
        return jnp.pad(one, ((0, 0), (0, 0), (0, 0), (0, width - cache.shape[-1])))

    def layer_of(scale: jax.Array | None) -> jax.Array | None:
        return None if scale is None else jax.lax.dynamic_index_in_dim(scale, layer, keepdims=True)

    return KVCache(widen(stream.k), widen(stream.v), layer_of(stream.k_scale), layer_of(stream.v_scale))


@cache
def _jitted(name: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The kernel as a jitted call of its own: traced once for all layers, and flax's scan does not look inside."""
    return jax.jit(BACKENDS[name].attend_tiles, static_argnames=("scale", "tiles", "out_dtype", "interpret"))


def moved_log_sum_exp(
    kernel: Kernel,
    q: Float[Array, "K rows D"],
    cache: KVCache,
    layer: Int[Array, ""] | int,
    start: Int[ArrayLike, " C"],
    end: Int[ArrayLike, " C"],
    cos: Float[Array, "C half"],
    sin: Float[Array, "C half"],
    *,
    width: int,
) -> Float[Array, "C K rows"]:
    """The log-sum-exp of queries over short key ranges, each rotated by an angle of its own, in one call of a kernel that
    `moves_ranges`; see `tpu_moved_ranges.log_sum_exp`."""
    log_sum_exp = kernel.backend.log_sum_exp
    bounds = (jnp.asarray(bound, jnp.int32) for bound in (start, end))
    return log_sum_exp(q, cache, layer, *bounds, cos, sin, width=width, interpret=kernel.interpret)


def full_attention(
    kernel: Kernel,
    q: Float[Array, "F N H D"],
    k: Float[Array, "F N H D"],
    v: Float[Array, "F N H D"],
    *,
    scale: float | None = None,
) -> Float[Array, "F N H D"]:
    """Full attention within many short sequences, such as the patches of a batch of frames.

    Where the backend has a kernel for frames (`attend_frames`) that takes these, it reads heads where the projections left them.
    Otherwise heads are padded to the kernel's width, and frames and heads become the kernel's key heads.
    """
    frames, count, heads, width = q.shape
    scale = width**-0.5 if scale is None else scale
    if kernel.full is None:
        return reference.full_attention(q, k, v, scale)
    tiles = kernel.full
    of_frames = getattr(kernel.backend, "frames_refusal", None)
    if of_frames and not of_frames(dtype=q.dtype, heads=heads, width=width, patches=count):
        columns = (a.reshape(frames, count, heads * width) for a in (q, k, v))
        out = kernel.backend.attend_frames(
            *columns, heads=heads, rows=tiles.rows, scale=scale, interpret=kernel.interpret
        )
        return out.reshape(q.shape)
    padded = max(kernel.full_width, width)
    capacity = -(-count // 16) * 16

    def fill(a: jax.Array, length: int) -> jax.Array:
        heads_first = jnp.moveaxis(a, 2, 1).reshape(frames * heads, count, width)
        return jnp.pad(heads_first, ((0, 0), (0, length - count), (0, padded - width)))

    stream = KVCache(fill(k, capacity)[None], fill(v, capacity)[None])
    tiles_of_rows = -(-count // tiles.rows)
    bounds = jnp.full((1, tiles_of_rows), count, jnp.int32)
    rows = jnp.full((1, tiles_of_rows, tiles.rows), count, jnp.int32)
    none, no_row = jnp.zeros_like(bounds), jnp.zeros_like(rows)
    schedule = TileSchedule(jnp.arange(tiles_of_rows, dtype=jnp.int32), none, bounds, none, bounds, no_row, rows)
    packed = fill(q, tiles_of_rows * tiles.rows).reshape(frames * heads, tiles_of_rows, tiles.rows, padded)
    out, _ = run_items(kernel, packed, (stream,), 0, schedule, scale=scale, tiles=tiles, out_dtype=q.dtype)
    out = out.reshape(frames, heads, -1, padded)[:, :, :count, :width]
    return jnp.moveaxis(out, 1, 2)
