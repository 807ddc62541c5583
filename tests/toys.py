"""A toy model, toy videos, and the plainest possible statement of what they should compute."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vxl2_jax import prefill
from vxl2_jax.cache.pooling import sparse_level
from vxl2_jax.config import LanguageConfig, ModelConfig, VisionConfig
from vxl2_jax.layout import Layout, PrefillRule, natural_mask
from vxl2_jax.memory import VideoMemory
from vxl2_jax.models import qwen2, video_xl_2

CONFIG = ModelConfig(
    vision=VisionConfig(image_size=28, patch_size=7, width=16, layers=2, heads=2, mlp=24),
    language=LanguageConfig(
        width=32, layers=3, heads=4, kv_heads=2, head_width=16, mlp=48, vocabulary=61, rope_theta=1e4
    ),
    resized_grid=4,
    pool=2,
    norm_groups=8,
    max_relative=4,
    visual_placeholder=60,
    stop_tokens=(59,),
)
LAYOUT = Layout(prefix=5, timestamp_lengths=(3, 3, 4, 3, 4, 4, 5), visual=4)
RULE = PrefillRule(block_size=2, prev_blocks=1)


class Toy(NamedTuple):
    config: ModelConfig
    params: Any


def model(config: ModelConfig = CONFIG) -> Toy:
    """Random weights, large enough that every part of the network matters."""
    shapes = jax.eval_shape(lambda key: video_xl_2.init(key, config), jax.random.key(0))
    rng = np.random.default_rng(7)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim == 5 else leaf.shape[-2] if leaf.ndim > 1 else 1
        spread = 0.2 if name in ("scale", "bias") else 1.0 if name == "embed" else fan_in**-0.5
        return jnp.asarray(rng.normal(name == "scale", spread, leaf.shape), jnp.float32)

    return Toy(config, jax.tree_util.tree_map_with_path(draw, shapes))


class Video(NamedTuple):
    """global_ids int32 [global_length]; visual fp32 [G, V, E]."""

    layout: Layout
    global_ids: np.ndarray
    visual: np.ndarray


def video(seed: int = 0, layout: Layout = LAYOUT, config: ModelConfig = CONFIG) -> Video:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, config.language.vocabulary, layout.global_length).astype(np.int32)
    shape = (layout.groups, layout.visual, config.language.width)
    return Video(layout, ids, rng.normal(size=shape).astype(np.float32))


def prefilled(
    toy: Toy,
    clip: Video,
    rule: PrefillRule = RULE,
    stride: int = 2,
    dtype: Any = jnp.float32,
    keep_hidden: bool = False,
) -> tuple[prefill.DenseCache, np.ndarray]:
    """The streams, and (with `keep_hidden`) the residual stream in natural order [L, E]."""
    sizes = prefill.shape_for(clip.layout, stride, dtype=dtype)
    streams = prefill.empty(toy.config, sizes, dtype)
    padded = np.pad(clip.visual, ((0, -clip.layout.groups % stride), (0, 0), (0, 0)))
    hidden = np.zeros((clip.layout.length, toy.config.language.width), np.float32)
    for number, part in enumerate(prefill.plan_strides(clip.layout, rule, clip.global_ids, sizes)):
        tokens = jnp.asarray(padded[number * stride : (number + 1) * stride])
        streams, x = prefill.run_stride(toy.params, toy.config, streams, part, tokens, keep_hidden=keep_hidden)
        if keep_hidden:
            real = part.k_end.sum(axis=0) > 0
            hidden[part.positions[real]] = np.asarray(x, np.float32)[real]
    return streams, hidden


def remembered(
    toy: Toy, clip: Video, rule: PrefillRule = RULE, compression: int = 2, stride: int = 2, dtype: Any = jnp.float32
) -> VideoMemory:
    streams, _ = prefilled(toy, clip, rule, stride, dtype)
    theta = toy.config.language.rope_theta
    return VideoMemory(
        dense=streams,
        sparse=sparse_level(streams, clip.layout, compression, theta),
        layout=clip.layout,
        rule=rule,
        compression=compression,
        seconds=tuple(4.0 * g for g in range(clip.layout.groups)),
        end_s=4.0 * clip.layout.groups,
        frames=4 * clip.layout.groups,
        rope_theta=theta,
        model="toy",
    )


def natural(clip: Video, visual: np.ndarray, global_: np.ndarray) -> np.ndarray:
    """Rows of both streams [..., S, D] put in natural order [..., L, D]."""
    layout = clip.layout
    rows = np.zeros((*np.shape(visual)[:-2], layout.length, np.shape(visual)[-1]), np.float32)
    rows[..., layout.visual_positions(), :] = np.asarray(visual)[..., : layout.visual_length, :]
    rows[..., layout.global_positions(), :] = np.asarray(global_)[..., : layout.global_length, :]
    return rows


def angles(positions: np.ndarray, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """float64 cosines and sines of the rotary angles [N, 1, D / 2]."""
    width = config.language.head_width
    frequency = config.language.rope_theta ** (-np.arange(0, width, 2) / width)
    angle = np.asarray(positions, np.float64)[:, None, None] * frequency
    return np.cos(angle), np.sin(angle)


def turned(x: np.ndarray, positions: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Rows [N, heads, D] rotated to positions."""
    cos, sin = angles(positions, config)
    a, b = np.split(np.asarray(x, np.float64), 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def whole_pass(
    toy: Toy, x: np.ndarray, mask: np.ndarray, keep: list | None = None, queries: list | None = None
) -> tuple[jax.Array, list]:
    """All tokens at once in natural order under a boolean mask [L, L]: the definition.

    x [L, E] → residual stream [L, E], and per layer (k before rotation, v) [L, K, D]. `keep`, a list,
    receives every layer's attention weights [H, L, L]; `queries` its queries before rotation [L, H, D].
    """
    cos, sin = (jnp.asarray(a, jnp.float32) for a in angles(np.arange(len(x)), toy.config))

    def turn(h):
        return jnp.concatenate(
            [
                h[..., : h.shape[-1] // 2] * cos - h[..., h.shape[-1] // 2 :] * sin,
                h[..., h.shape[-1] // 2 :] * cos + h[..., : h.shape[-1] // 2] * sin,
            ],
            axis=-1,
        )

    caches = []

    def attend(q, k, v, _):
        caches.append((k, v))
        if queries is not None:
            queries.append(np.asarray(q))
        repeats = q.shape[1] // k.shape[1]
        keys, values = jnp.repeat(turn(k), repeats, axis=1), jnp.repeat(v, repeats, axis=1)
        logits = jnp.einsum("nhd,mhd->hnm", turn(q), keys) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
        if keep is not None:
            keep.append(np.asarray(weights))
        return jnp.einsum("hnm,mhd->nhd", weights, values), None

    layers = toy.params["language"]["layers"]
    x = jnp.asarray(x)
    for layer in range(toy.config.language.layers):
        params = jax.tree.map(lambda a, layer=layer: a[layer], layers)
        x, _ = qwen2.DecoderLayer(toy.config.language).apply({"params": params}, x, attend)
    return x, caches


def embedded(toy: Toy, clip: Video, question: np.ndarray = np.zeros(0, np.int32)) -> np.ndarray:
    """Input rows of prefix, video and question in natural order [L, E]."""
    table = np.asarray(toy.params["language"]["embed"])
    rows = natural(clip, clip.visual.reshape(-1, clip.visual.shape[-1]), table[clip.global_ids])
    return np.concatenate([rows, table[np.asarray(question, int)]])


def mask_of(clip: Video, rule: PrefillRule, question: int = 0) -> np.ndarray:
    return natural_mask(clip.layout, rule, question)
