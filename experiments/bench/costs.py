"""FLOPs and bytes that a computation needs at least: the floors of the roofline.

A multiply-add is two FLOPs. Bytes: every input read once, every result written once.
"""

from __future__ import annotations

import numpy as np

from vxl2_jax.config import ModelConfig, VisionConfig


def visible_pairs(k_start: np.ndarray, k_end: np.ndarray) -> int:
    """Visible pairs of a query and a key. k_start, k_end int32 [S, N]."""
    return int((k_end.astype(np.int64) - k_start).sum())


def keys_read(k_start: np.ndarray, k_end: np.ndarray) -> int:
    """Keys visible to at least one query. k_start, k_end int32 [S, N]."""
    total = 0
    for start, end in zip(k_start, k_end, strict=True):
        edges = np.zeros(int(end.max(initial=0)) + 2, np.int64)
        some = end > start
        np.add.at(edges, start[some], 1)
        np.add.at(edges, end[some], -1)
        total += int((np.cumsum(edges) > 0).sum())
    return total


def attention_flops(pairs: int, heads: int, width: int) -> int:
    """Logits and weighted sums of `pairs` pairs in every query head."""
    return 4 * width * heads * pairs


def attention_bytes(queries: int, keys: int, heads: int, kv_heads: int, width: int, itemsize: int) -> int:
    """Queries in and out, keys and values in."""
    return itemsize * width * 2 * (queries * heads + keys * kv_heads)


def tower_flops(config: VisionConfig) -> int:
    """One frame through the vision tower."""
    tokens, width = config.grid**2, config.width
    block = 8 * tokens * width**2 + 4 * tokens * width * config.mlp + 4 * tokens**2 * width
    return 2 * tokens * 3 * config.patch_size**2 * width + config.layers * block


def dts_flops(config: ModelConfig) -> int:
    """DTS of one group of frames. Products only, without norms and softmax."""
    places, width, steps, total = config.resized_grid**2, config.vision.width, config.frames_per_group, 0
    while steps > 1:
        linear = 2 * 8 * steps * places * width**2  # spatial and temporal: query, key, value, out
        total += linear + 4 * steps * places**2 * width + 8 * steps**2 * places * width
        steps //= 2
        total += 2 * 27 * steps * places * width**2  # the 3 × 3 × 3 convolution
    return total


def projector_flops(config: ModelConfig) -> int:
    """The projector on one group, pooled before the last product."""
    out = config.language.width
    return 2 * config.resized_grid**2 * config.vision.width * out + 2 * config.visual_tokens * out**2
