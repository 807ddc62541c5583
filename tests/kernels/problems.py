"""Problems for attention kernels: random ranges, and the ranges of real video layouts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pallas_kernels.attention import KVCache, hopper
from vxl2_jax.layout import GLOBAL, VISUAL, Layout, PrefillRule, key_ranges


def problem(seed, count, lengths, kv_heads=2, repeats=2, width=8, layers=2, dtype=jnp.float32):
    """Queries, streams and random ranges, some of them empty."""
    rng = np.random.default_rng(seed)
    bounds = np.asarray([rng.integers(0, length + 1, (2, count)) for length in lengths], np.int32)
    k_start, k_end = bounds.min(axis=1), bounds.max(axis=1)
    k_end = np.where(rng.random(k_end.shape) < 0.2, k_start, k_end).astype(np.int32)
    q, streams = arrays(rng, count, lengths, kv_heads, repeats, width, layers, dtype)
    return q, streams, k_start, k_end


def arrays(rng, count, lengths, kv_heads, repeats, width, layers, dtype):
    """Random queries [N, H, D] and streams [L, K, S, D]."""

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    streams = tuple(KVCache(*(normal(layers, kv_heads, length, width) for _ in "kv")) for length in lengths)
    return normal(count, kv_heads * repeats, width), streams


@st.composite
def strides(draw):
    """(lengths of both streams, starts, stops [2, N]) of one stride of a video, ragged and padded as videos are:
    one group, windows larger than the video, no window, V of 10, 12 and 144, or a question of 1 to 40 rows."""
    visual = draw(st.sampled_from([10, 12, 144]))
    groups = draw(st.integers(1, 9 if visual == 144 else 30))
    stamps = tuple(draw(st.lists(st.integers(1, 9), min_size=groups, max_size=groups)))
    layout = Layout(draw(st.integers(0, 20)), stamps, visual)
    rule = PrefillRule(draw(st.integers(1, 5)), draw(st.sampled_from([None, 0, 1, 3])))
    lengths = (layout.visual_length + draw(st.integers(0, 40)), layout.global_length + 1 + draw(st.integers(0, 40)))
    if draw(st.booleans()):
        count = draw(st.integers(1, 40))
        k_end = np.asarray([[layout.visual_length] * count, [layout.global_length] * count], np.int32)
        return lengths, np.zeros_like(k_end), k_end
    first = draw(st.integers(0, groups - 1)) * visual
    ranges = [key_ranges(layout, rule, VISUAL, first, first + draw(st.integers(1, 4)) * visual)]
    ranges.append(key_ranges(layout, rule, GLOBAL, 0, layout.global_length + draw(st.integers(0, 9))))
    return lengths, *(np.concatenate(part, axis=1) for part in zip(*ranges, strict=True))


def backends(float32: float, bfloat16: float) -> list:
    """Parameters (name, dtype, tolerance): every backend in the widest dtype that it multiplies."""
    unable = hopper.refusal(dtype=jnp.dtype("bfloat16"), width=128, rows=64) or ""
    return [
        pytest.param("tpu", "float32", float32, id="tpu"),
        pytest.param("ampere", "float32", float32, id="ampere"),
        pytest.param(
            "hopper", "bfloat16", bfloat16, id="hopper", marks=pytest.mark.skipif(bool(unable), reason=unable)
        ),
    ]
