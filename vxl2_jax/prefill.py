"""Chunk-based pre-filling by strides: a fixed number of groups at a time, with the cache as carry.

A *stride* is the groups of one call of the language model. It is only a batch size: what a token attends to is decided
by blocks (`layout.PrefillRule`), not by strides. Because of strides activation memory does not grow with the video, and
one executable serves every length whose cache has the same capacity. The cache holds keys rotated at their positions, so
nothing else needs to know where a stride began.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels import attention, kv_cache
from pallas_kernels.attention import REFERENCE, Kernel, KVCache
from vxl2_jax.buckets import bucket, round_up
from vxl2_jax.config import ModelConfig
from vxl2_jax.layout import GLOBAL, VISUAL, Layout, PrefillRule, key_ranges
from vxl2_jax.models import qwen2
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.tensor_parallel import program


class DenseCache(NamedTuple):
    """The dense level: keys rotated at their positions, and values, of both streams [L, K, S, D]."""

    visual: KVCache
    global_: KVCache


class Stride(NamedTuple):
    """What one stride feeds through the layers: its visual tokens, then its global tokens (padded).

    ids int32 [N]: the global tokens; positions int32 [rows]; k_start, k_end int32 [2, rows]: the ranges of
    `layout.key_ranges`, empty for padding; offsets: where in each stream the rows are written.
    """

    ids: np.ndarray
    positions: np.ndarray
    k_start: np.ndarray
    k_end: np.ndarray
    visual_offset: np.int32
    global_offset: np.int32


class PrefillShape(NamedTuple):
    """The static sizes of pre-filling.

    stride: groups per stride; global_rows: global tokens per stride, padding included; visual, global_: cache slots of
    the two streams.
    """

    stride: int
    global_rows: int
    visual: int
    global_: int


MIN_CAPACITY = tuple(keys + 16 for keys in REFERENCE.max_keys)
"""Slots of the shortest streams. A stream that is shorter than a key tile of the reference would be read in a smaller tile,
which sums in another order: an extended memory would then differ in the last bits from one that was made at once."""


def shape_for(layout: Layout, stride: int, since: int = 0, *, dtype: DTypeLike = jnp.float32) -> PrefillShape:
    """Sizes for a layout, rounded up so that videos of similar length share executables.

    since: the group at which the first stride begins (see `plan_strides`); dtype: of the cache.
    """
    # A first stride that begins inside another one shifts all strides after it.
    strides = bucket(-(-max(layout.groups, 1) // stride) + (since % stride > 0))
    rows = global_rows(layout, stride)
    # Whole strides are written, so the last one needs capacity after the last real token.
    lengths = strides * stride * layout.visual, global_rows(layout, strides * stride) + global_rows(layout, 0)
    visual, global_ = (
        kv_cache.aligned(max(length, minimum), dtype) for length, minimum in zip(lengths, MIN_CAPACITY, strict=True)
    )
    return PrefillShape(stride, rows, visual, global_)


def global_rows(layout: Layout, groups: int) -> int:
    """The most global tokens that `groups` groups can have, the prefix included."""
    return round_up(layout.prefix, 4) + groups * max(layout.timestamp_lengths, default=1)


def plan_strides(
    layout: Layout, rule: PrefillRule, global_ids: Int[np.ndarray, " global"], sizes: PrefillShape, since: int = 0
) -> list[Stride]:
    """Divide a layout, from group `since` on, into strides. global_ids: tokens of the whole global stream."""

    def pad(rows: np.ndarray, length: int) -> np.ndarray:
        return np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, length - rows.shape[-1])])

    visual_positions, global_positions = layout.visual_positions(), layout.global_positions()
    visual_rows, global_rows = sizes.stride * layout.visual, sizes.global_rows
    strides = []
    for first in range(since, max(layout.groups, 1), sizes.stride):
        begin, end = layout.global_range(first, min(first + sizes.stride, layout.groups))
        start = first * layout.visual
        visual_ranges = key_ranges(layout, rule, VISUAL, start, start + visual_rows)
        global_ranges = key_ranges(layout, rule, GLOBAL, begin, end)
        k_start, k_end = (
            np.concatenate([of_visual, pad(of_global, global_rows)], axis=1)
            for of_visual, of_global in zip(visual_ranges, global_ranges, strict=True)
        )
        positions = [
            pad(visual_positions[start : start + visual_rows], visual_rows),
            pad(global_positions[begin:end], global_rows),
        ]
        ids = pad(np.asarray(global_ids[begin:end], np.int32), global_rows)
        strides.append(Stride(ids, np.concatenate(positions), k_start, k_end, np.int32(start), np.int32(begin)))
    return strides


def empty(config: ModelConfig, sizes: PrefillShape, dtype: DTypeLike, sharding: Any = None) -> DenseCache:
    """A cache of zeros with the given capacity. sharding: see `kv_cache.zeros`."""
    lm = config.language
    return empty_streams(lm.layers, lm.kv_heads, lm.head_width, sizes, dtype, sharding)


def empty_streams(
    layers: int, kv_heads: int, width: int, sizes: PrefillShape, dtype: DTypeLike, sharding: Any = None
) -> DenseCache:
    """The same from plain numbers."""
    capacities = sizes.visual, sizes.global_
    return DenseCache(*(kv_cache.zeros(layers, kv_heads, slots, width, dtype, sharding) for slots in capacities))


@program(static=("config", "keep_hidden", "kernel"), donated=("streams",))
def run_stride(
    params: Any,
    config: ModelConfig,
    streams: DenseCache,
    stride: Stride,
    visual_tokens: Float[Array | np.ndarray, "stride V E"],
    keep_hidden: bool = False,
    kernel: Kernel = REFERENCE,
) -> tuple[DenseCache, Float[Array, "rows E"] | None]:
    """Feed one stride through the language model.

    Returns the cache, which is donated, with the stride's keys and values; and, only with `keep_hidden` (for parity), the
    residual stream after the last layer. Otherwise the last layer stops after its keys and values, which is all that
    later tokens read.
    """
    lm, language = config.language, params["language"]
    x = embed_stride(language, config, stride.ids, visual_tokens)
    attend = _attend(config, stride, kernel, streams)
    x, streams = qwen2.run_layers(language, lm, x, attend, streams, last_keys_only=not keep_hidden)
    return streams, x if keep_hidden else None


@program(static=("config",))
def stride_inputs(
    params: Any, config: ModelConfig, stride: Stride, visual_tokens: Float[Array | np.ndarray, "stride V E"]
) -> Float[Array, "rows E"]:
    """The residual stream before the first layer of a stride, for `run_stride_layer`."""
    return qwen2.residual_stream(embed_stride(params["language"], config, stride.ids, visual_tokens))


@program(static=("config", "stacked", "keys_only", "kernel"), donated=("x", "streams"))
def run_stride_layer(
    params: Any,
    config: ModelConfig,
    layer: Int[Array | np.ndarray, ""],
    x: Float[Array, "rows E"],
    streams: DenseCache,
    stride: Stride,
    *,
    stacked: bool,
    keys_only: bool,
    kernel: Kernel = REFERENCE,
) -> tuple[Float[Array, "rows E"], DenseCache, DenseCache]:
    """Feed one stride through one layer. `run_stride` computes the same for all layers at once.

    Args:
      params: {"language": {"layers": …}} with the parameters of this layer, or (`stacked`) of all layers.
      config: geometry.
      layer: the number of the layer.
      x: the residual stream, which is donated.
      streams: the cache of this layer alone (L = 1), which is donated.
      stride: what the stride feeds.
      stacked: see `params`.
      keys_only: for the last layer, see `qwen2.DecoderLayer`.
      kernel: the attention kernel.

    Returns:
      (the residual stream after the layer, the cache with the stride's rows, these rows alone).
    """
    layers = params["language"]["layers"]
    own = qwen2.layer_of(layers, layer) if stacked else layers
    attend = _attend(config, stride, kernel, streams)

    def attend_here(q: Array, k: Array, v: Array, cache: DenseCache) -> tuple[Array, DenseCache]:
        return attend(q, k, v, cache, jnp.int32(0))

    x, streams = qwen2.run_layer(own, config.language, x, attend_here, streams, keys_only)
    counts = len(x) - len(stride.ids), len(stride.ids)
    offsets = stride.visual_offset, stride.global_offset
    rows = (stream.rows(*where) for stream, *where in zip(streams, offsets, counts, strict=True))
    return x, streams, DenseCache(*rows)


def embed_stride(
    language: Any,
    config: ModelConfig,
    ids: Int[Array | np.ndarray, " global"],
    visual_tokens: Float[Array | np.ndarray, "stride V E"],
) -> Float[Array, "rows E"]:
    """The embeddings of a stride: its visual tokens, then its global ones, `ids`."""
    visual = visual_tokens.reshape(-1, config.language.width).astype(qwen2.dtype_of(language))
    return jnp.concatenate([visual, qwen2.embed(language, config.language, jnp.asarray(ids))])


def _attend(config: ModelConfig, stride: Stride, kernel: Kernel, streams: DenseCache) -> qwen2.AttendLayer:
    """How a layer attends: it writes the stride's rows into the cache, then reads the key ranges of the stride."""
    lm, count = config.language, len(stride.positions) - len(stride.ids)
    cos, sin = (table[:, None] for table in rotation(stride.positions, lm.head_width, lm.rope_theta))
    # Visual rows read a window, global rows everything before them: separately, each kind fills the device.
    parts = (slice(None, count), slice(count, None))
    plans = [
        attention.plan_attention(
            kernel, stride.k_start[:, part], stride.k_end[:, part], heads=lm.heads, streams=tuple(streams)
        )
        for part in parts
    ]

    def attend(q: Array, k: Array, v: Array, cache: DenseCache, layer: Array) -> tuple[Array, DenseCache]:
        k, q = rotate(k, cos, sin), rotate(q, cos, sin)
        visual = cache.visual.write(k[:count], v[:count], layer, stride.visual_offset)
        global_ = cache.global_.write(k[count:], v[count:], layer, stride.global_offset)
        out = [
            attention.attend(q[part], (visual, global_), plan, layer=layer)[0]
            for part, plan in zip(parts, plans, strict=True)
        ]
        return jnp.concatenate(out), DenseCache(visual, global_)

    return attend
