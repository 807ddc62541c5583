"""Chunk-based pre-filling by strides: a fixed number of groups at a time, the cache as carry.

Activation memory does not grow with the video, and one executable serves every length whose cache has
the same capacity. The cache holds keys rotated at their positions; nothing else needs to know where a
stride began.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import attention
from pallas_kernels.attention import REFERENCE, Kernel, KVCache
from vxl2_jax.buckets import bucket, round_up
from vxl2_jax.config import ModelConfig
from vxl2_jax.layout import GLOBAL, VISUAL, Layout, PrefillRule, key_ranges
from vxl2_jax.models import qwen2
from vxl2_jax.models.rope import rotate, rotation


class DenseCache(NamedTuple):
    """The dense level: keys rotated at their positions, and values, of both streams [L, K, S, D]."""

    visual: KVCache
    global_: KVCache


class Stride(NamedTuple):
    """What one stride feeds through the layers: its visual tokens, then its global tokens (padded).

    ids int32 [N]: the global tokens; positions int32 [rows]; starts, stops int32 [2, rows]: the key
    ranges of `layout.key_ranges`, empty for padding; offsets: where in each stream the rows are written.
    """

    ids: np.ndarray
    positions: np.ndarray
    k_start: np.ndarray
    k_end: np.ndarray
    visual_offset: np.int32
    global_offset: np.int32


class CacheCapacity(NamedTuple):
    """Static sizes of a watched video: groups per stride, global rows per stride, tokens per stream."""

    stride: int
    global_rows: int
    visual: int
    global_: int


_LEAST = tuple(keys + 16 for keys in attention.CPU_KEYS)
"""Room of the shortest streams: on a CPU more than a tile of the reference, which then cuts the same tiles whatever the
capacity, so that a memory that grew equals, bit for bit, one made at once. (A stream of one tile would be copied whole.)"""


def capacity(layout: Layout, stride: int, since: int = 0) -> CacheCapacity:
    """Sizes for a layout, rounded up so that videos of like length share executables.

    since: the group at which strides begin to be counted, where it is not 0 (see `plan_strides`).
    """
    # Beginning within a stride shifts all strides after it.
    strides = bucket(-(-max(layout.groups, 1) // stride) + (since % stride > 0))
    per_stamp = max(layout.stamps, default=1)
    prefix = round_up(layout.prefix, 4)
    rows = prefix + stride * per_stamp
    # Writes are whole strides wide, so the last one needs room behind the last real token. Multiples of 16 are
    # what a TPU can cut key tiles from without copying.
    visual, global_ = strides * stride * layout.visual, 2 * prefix + strides * stride * per_stamp
    room = (max(round_up(room, 16), least) for room, least in zip((visual, global_), _LEAST, strict=True))
    return CacheCapacity(stride, rows, *room)


def plan_strides(
    layout: Layout, rule: PrefillRule, global_ids: np.ndarray, sizes: CacheCapacity, since: int = 0
) -> list[Stride]:
    """Cut a layout, from group `since` on, into strides. `global_ids` int32 [layout.global_length]."""
    strides = []
    for first in range(since, max(layout.groups, 1), sizes.stride):
        last = min(first + sizes.stride, layout.groups)
        begin, end = layout.global_range(first, last)
        visual = range(first * layout.visual, (first + sizes.stride) * layout.visual)
        tokens = end - begin
        ranges_v = key_ranges(layout, rule, VISUAL, visual.start, visual.stop)
        ranges_g = key_ranges(layout, rule, GLOBAL, begin, end)

        def pad(rows):
            return np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, sizes.global_rows - rows.shape[-1])])

        visual_positions = layout.visual_positions()[visual.start : visual.stop]
        assert tokens <= sizes.global_rows
        strides.append(
            Stride(
                ids=pad(np.asarray(global_ids[begin:end], np.int32)),
                positions=np.concatenate(
                    [
                        np.pad(visual_positions, (0, len(visual) - len(visual_positions))),
                        pad(layout.global_positions()[begin:end]),
                    ]
                ),
                k_start=np.concatenate([ranges_v[0], pad(ranges_g[0])], axis=1),
                k_end=np.concatenate([ranges_v[1], pad(ranges_g[1])], axis=1),
                visual_offset=np.int32(visual.start),
                global_offset=np.int32(begin),
            )
        )
    return strides


def empty(config: ModelConfig, sizes: CacheCapacity, dtype: Any) -> DenseCache:
    """A cache of zeros for a video of the given capacity."""
    lm = config.language
    return empty_streams(lm.layers, lm.kv_heads, lm.head_width, sizes, dtype)


def empty_streams(layers: int, kv_heads: int, width: int, sizes: CacheCapacity, dtype: Any) -> DenseCache:
    """The same from plain numbers."""

    def stream(length):
        return KVCache(*(jnp.zeros((layers, kv_heads, length, width), dtype) for _ in "kv"))

    return DenseCache(stream(sizes.visual), stream(sizes.global_))


@partial(jax.jit, static_argnames=("config", "keep_hidden", "kernel"), donate_argnames=("streams",))
def run_stride(
    params: Any,
    config: ModelConfig,
    streams: DenseCache,
    stride: Stride,
    visual_tokens: jax.Array,
    keep_hidden: bool = False,
    kernel: Kernel = REFERENCE,
) -> tuple[DenseCache, jax.Array | None]:
    """Feed one stride through the language model.

    Shapes: visual_tokens [stride, V, E]; `kernel` is the attention to use. Returns the cache with the stride's keys
    and values written, and (only with `keep_hidden`, for parity) the residual stream after the last layer [rows, E];
    otherwise the last layer stops at its keys and values, which is all that later tokens need of it.
    """
    lm, language = config.language, params["language"]
    ids = jnp.asarray(stride.ids)
    x = jnp.concatenate(
        [visual_tokens.reshape(-1, lm.width).astype(language["embed"].dtype), qwen2.embed(language, ids)]
    )
    count = x.shape[0] - ids.shape[0]
    cos, sin = (table[:, None] for table in rotation(stride.positions, lm.head_width, lm.rope_theta))
    # Visual rows read a window, global rows all there is: apart, each kind fills the machine in its own way.
    parts = (slice(None, count), slice(count, None))
    ready = partial(attention.plan_attention, kernel, heads=lm.heads, streams=tuple(streams))
    reads = [ready(stride.k_start[:, part], stride.k_end[:, part]) for part in parts]

    def attend(q, k, v, state, layer):
        k = rotate(k, cos, sin)
        visual = state.visual.write(k[:count], v[:count], layer, stride.visual_offset)
        global_ = state.global_.write(k[count:], v[count:], layer, stride.global_offset)
        q = rotate(q, cos, sin)
        out = [
            attention.attend(q[part], (visual, global_), r, layer=layer)[0]
            for part, r in zip(parts, reads, strict=True)
        ]
        return jnp.concatenate(out), DenseCache(visual, global_)

    x, streams = qwen2.run_layers(language, lm, x, attend, streams, last_keys_only=not keep_hidden)
    return streams, x if keep_hidden else None
