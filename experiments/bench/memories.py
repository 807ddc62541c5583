"""Memories of real sizes filled with random keys and values, and what exactly a question over them should see."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from experiments.bench import layouts
from experiments.parity.assembled import MixedPlan, plan_mixed
from pallas_kernels.attention import KVCache
from vxl2_jax import prefill
from vxl2_jax.cache import views
from vxl2_jax.cache.pooling import sparse_level
from vxl2_jax.cache.views import KVCacheView
from vxl2_jax.config import LanguageConfig
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.memory import VideoMemory
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.relevance import selection

KINDS = ("mixed", "dense", "sparse")


def remember(
    lm: LanguageConfig, layout: Layout, *, stride: int, compression: int, dtype: str, key: jax.Array
) -> VideoMemory:
    """A memory as watching leaves it, of random numbers; its sparse level is pooled from the dense one."""
    sizes = prefill.shape_for(layout, stride)

    def make(k, length):
        return layouts.stream(k, lm.layers, lm.kv_heads, length, lm.head_width, dtype)

    keys = jax.random.split(key)
    dense = prefill.DenseCache(make(keys[0], sizes.visual), make(keys[1], sizes.global_))
    return VideoMemory(
        dense=dense,
        sparse=sparse_level(dense, layout, compression, lm.rope_theta),
        layout=layout,
        rule=PrefillRule(),
        compression=compression,
        seconds=tuple(4.0 * g for g in range(layout.groups)),
        end_s=4.0 * layout.groups,
        frames=4 * layout.groups,
        rope_theta=lm.rope_theta,
        model="random",
    )


def dense_chunks(layout: Layout, kind: str, chunk_size: int, top_k: int, seed: int) -> np.ndarray | None:
    """Which chunks a kind of cache loads dense: bool [chunks + 1]; None for the sparse level as it is."""
    chunks = layout.chunks(chunk_size)
    if kind == "sparse":
        return None
    scores = np.random.default_rng(seed).random(chunks)
    return selection.dense_chunks(chunks, None if kind == "dense" else selection.top_chunks(scores, top_k))


def base(memory: VideoMemory, dense: np.ndarray | None, chunk_size: int, kernel: Any) -> KVCacheView:
    """What a question reads, as asking makes it."""
    if dense is None:
        return views.sparse_view(memory, kernel)
    return (
        views.dense_view(memory, kernel) if dense.all() else views.mixed_view(memory, chunk_size, dense[None], kernel)
    )


def plan(memory: VideoMemory, dense: np.ndarray | None, chunk_size: int) -> MixedPlan:
    """The same slot by slot."""
    if dense is not None:
        return plan_mixed(memory.layout, memory.compression, chunk_size, dense)
    slots = np.arange(memory.sparse_length, dtype=np.int32)
    return MixedPlan(np.full_like(slots, 2), slots, np.zeros_like(slots))


def unrounded(memory: VideoMemory, plan: MixedPlan, layer: int) -> KVCache:
    """One layer of a cache gathered slot by slot and turned in float32: [1, K, M, D]."""
    stores = (memory.dense.visual, memory.dense.global_, memory.sparse)
    bounds = np.cumsum([0, *(store.k.shape[2] for store in stores)])
    index = bounds[plan.store] + plan.index

    def gather(part: str) -> jax.Array:
        whole = jax.numpy.concatenate([getattr(store, part)[layer] for store in stores], axis=1)
        return whole[:, index].astype("float32")[None]

    turn = rotation(plan.shift, stores[0].k.shape[-1], memory.rope_theta)
    return KVCache(rotate(gather("k"), *turn), gather("v"))
