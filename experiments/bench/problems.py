"""Problems of real sizes: layouts of videos, random arrays, weights, models and memories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.assembled import MixedPlan, plan_mixed
from pallas_kernels import attention
from pallas_kernels.attention import Kernel, KVCache
from vxl2_jax import hardware, planning, prefill
from vxl2_jax.api import Model
from vxl2_jax.cache import views
from vxl2_jax.cache.pooling import sparse_level
from vxl2_jax.config import LanguageConfig, ModelConfig
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.memory import VideoMemory
from vxl2_jax.models import video_xl_2
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.relevance import selection

_RELEASED = planning.model_of("video-xl-2")[0]
_GROUP = _RELEASED.frames_per_group


def video_layout(frames: int, visual: int) -> Layout:
    """The released model's layout of a video at one frame a second, with `visual` visual tokens per group."""
    return replace(planning.layout_for(_RELEASED, None, frames, 1.0), visual=visual)


@partial(jax.jit, static_argnames=("shape", "dtype"))
def normal(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Standard normal numbers, drawn slice by slice of the first axis: temporaries stay small."""
    return jax.lax.map(lambda k: jax.random.normal(k, shape[1:], dtype), jax.random.split(key, shape[0]))


def stream(key: jax.Array, layers: int, kv_heads: int, length: int, width: int, dtype: str) -> KVCache:
    """Random keys and values [L, K, S, D]."""
    shape = (layers, kv_heads, length, width)
    return KVCache(*(normal(part, shape, dtype) for part in jax.random.split(key)))


def nbytes(arrays: object) -> int:
    """Bytes of a pytree of arrays."""
    return sum(a.size * jnp.dtype(a.dtype).itemsize for a in jax.tree.leaves(arrays))


def weights(config: ModelConfig, parts: Sequence[str], dtype: str, seed: int) -> dict[str, Any]:
    """Random weights of parts of a model ("vision", "dts", "projector", "language"), made on the device in `dtype`."""
    shapes = jax.eval_shape(lambda key: video_xl_2.init(key, config), jax.random.key(0))
    leaves, structure = jax.tree_util.tree_flatten_with_path({part: shapes[part] for part in parts})

    @jax.jit
    def draw(key: jax.Array) -> list[jax.Array]:
        keys = jax.random.split(key, len(leaves))
        return [_weight(path[-1].key, leaf.shape, k, dtype) for (path, leaf), k in zip(leaves, keys, strict=True)]

    return jax.tree.unflatten(structure, draw(jax.random.key(seed)))


def _weight(name: str, shape: tuple[int, ...], key: jax.Array, dtype: str) -> jax.Array:
    """Small random numbers; norm scales are near 1, so that activations have the size they have in a trained model."""
    draw = normal if len(shape) > 2 else jax.random.normal  # stacked layers and convolutions slice by slice
    return 0.02 * draw(key, shape, dtype) + jnp.asarray(name == "scale", dtype)


class CountingTokenizer:
    """Makes as many tokens as Qwen2.5 of the texts around a video; random weights need no particular ones."""

    def encode(self, text: str) -> list[int]:
        return list(range(planning.count_tokens(text)))


def random_model(config: ModelConfig, *, dtype: Any, seed: int) -> Model:
    """A model as `vxl2_jax.load` returns it, with random weights.

    Raises ValueError if the kernel chosen for the device fails its self-test: the figures of the one that would replace
    it could be mistaken for its own.
    """
    device, width = jax.devices()[0], config.language.head_width
    kernel, reason, _ = attention.choose_kernel(dtype=dtype, width=width, device=device)
    if kernel != attention.REFERENCE and (failure := attention.self_test(kernel, dtype=dtype, width=width)):
        raise ValueError(f"attention kernel {kernel.name} failed its self-test on this machine: {failure}")
    params = weights(config, ["vision", "dts", "projector", "language"], dtype, seed)
    return Model(
        "random weights",
        config,
        params,
        CountingTokenizer(),
        "random",
        kernel,
        reason,
        sizes=hardware.sizes_for(device),
    )


def random_memory(
    lm: LanguageConfig, layout: Layout, *, stride: int, compression: int, dtype: str, seed: int
) -> VideoMemory:
    """A memory of random keys and values; its sparse level is pooled from the dense one."""
    sizes = prefill.shape_for(layout, stride)
    keys = jax.random.split(jax.random.key(seed))
    dense = prefill.DenseCache(
        *(
            stream(key, lm.layers, lm.kv_heads, length, lm.head_width, dtype)
            for key, length in zip(keys, (sizes.visual, sizes.global_), strict=True)
        )
    )
    return VideoMemory(
        dense=dense,
        sparse=sparse_level(dense, layout, compression, lm.rope_theta),
        layout=layout,
        rule=PrefillRule(),
        compression=compression,
        seconds=tuple(float(_GROUP * group) for group in range(layout.groups)),
        end_s=float(_GROUP * layout.groups),
        frames=_GROUP * layout.groups,
        rope_theta=lm.rope_theta,
        model="random",
    )


CACHES = ("mixed", "dense", "sparse")


def dense_chunks(layout: Layout, cache: str, chunk_size: int, top_k: int, seed: int) -> np.ndarray | None:
    """The chunks that a kind of cache loads dense, bool [chunks + 1], by random scores; None for the sparse level."""
    chunks = layout.chunks(chunk_size)
    if cache == "sparse":
        return None
    scores = np.random.default_rng(seed).random(chunks)
    return selection.dense_chunks(chunks, None if cache == "dense" else selection.top_chunks(scores, top_k))


def memory_view(memory: VideoMemory, dense: np.ndarray | None, chunk_size: int, kernel: Kernel) -> views.KVCacheView:
    """What a question reads: the sparse level (dense None), the dense level (all true), or a mixture."""
    if dense is None:
        return views.sparse_view(memory, kernel)
    if dense.all():
        return views.dense_view(memory, kernel)
    return views.mixed_view(memory, chunk_size, dense[None], kernel)


def slots(memory: VideoMemory, dense: np.ndarray | None, chunk_size: int) -> MixedPlan:
    """The same cache slot by slot."""
    if dense is not None:
        return plan_mixed(memory.layout, memory.compression, chunk_size, dense)
    index = np.arange(memory.sparse_length, dtype=np.int32)
    return MixedPlan(np.full_like(index, 2), index, np.zeros_like(index))


def gathered(memory: VideoMemory, plan: MixedPlan, layer: int) -> KVCache:
    """One layer of a cache gathered slot by slot, re-rotated in float32: [1, K, M, D]."""
    stores = (memory.dense.visual, memory.dense.global_, memory.sparse)
    index = np.cumsum([0, *(store.k.shape[2] for store in stores)])[plan.store] + plan.index

    def gather(part: str) -> jax.Array:
        whole = jnp.concatenate([getattr(store, part)[layer] for store in stores], axis=1)
        return whole[:, index].astype(jnp.float32)[None]

    turn = rotation(plan.shift, stores[0].k.shape[-1], memory.rope_theta)
    return KVCache(rotate(gather("k"), *turn), gather("v"))
