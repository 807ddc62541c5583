"""Problems for attention kernels: random key ranges, the ranges of real video layouts, and what is expected of them."""

from __future__ import annotations

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pallas_kernels.attention import KVCache, hopper, reference, tile_schedule
from pallas_kernels.attention.tile_sizes import TileSizes
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


def in_int8(streams):
    """The same streams with keys and values in int8."""
    return tuple(KVCache.of_rows(stream.k, stream.v, jnp.int8) for stream in streams)


_ENDS = ("item_end", "unmasked_start", "unmasked_end")


def hardest_case(lengths, tiles: TileSizes, pieces: int, *, width: int, dtype=jnp.float32):
    """(query tiles, streams, schedule) with everything in it that kernels get wrong.

    Two tiles of queries, each split into `pieces` items. The rows of the first all see the middle of the first stream
    (full tiles) from different starts to different ends (masked tiles). Those of the second see random ranges, some of
    one key, some empty, and the last rows see nothing in any stream. The last item is empty. Keys that no row sees are
    huge.
    """
    repeats = 3
    count = 2 * tiles.rows // repeats
    half, first, rng = count // 2 + 1, lengths[0], np.random.default_rng(7)
    q, streams, k_start, k_end = problem(7, count, lengths, 2, repeats, width, dtype=dtype)
    k_start[0, :half], k_end[0, :half] = rng.integers(3, 9, half), rng.integers(first - 9, first - 3, half)
    k_end[0, half : half + 2] = k_start[0, half : half + 2] + 1
    k_start[0, half:], k_end[0, half:] = (np.clip(a[0, half:], 3, first - 4) for a in (k_start, k_end))
    k_end[:, -3:] = k_start[:, -3:]
    streams = (
        jax.tree.map(lambda a: a.at[:, :, :3].set(1e4).at[:, :, first - 3 :].set(-1e4), streams[0]),
        *streams[1:],
    )
    schedule = split_schedule(k_start, k_end, repeats, tiles.rows, pieces, 8)
    assert int((schedule.unmasked_end - schedule.unmasked_start).max()) >= 2 * tiles.keys, "no tile is full"
    empty = {name: getattr(schedule, name).at[:, -1].set(schedule.item_start[:, -1]) for name in _ENDS}
    schedule = schedule._replace(**empty)
    return tile_schedule.pack_rows(q, 2, tiles.rows), streams, schedule


def split_schedule(k_start, k_end, repeats, rows, pieces=1, multiple=8):
    """The schedule of key ranges [streams, N], every item split into `pieces`."""
    schedule = tile_schedule.schedule_tiles(jnp.asarray(k_start), jnp.asarray(k_end), repeats, rows)
    return tile_schedule.split_items(schedule, pieces, multiple)


def segment_items(ranges, streams, row_tiles, rows, q_tile):
    """A schedule as in decoding: each item reads one range (stream, start, end), without masks, for one query tile."""
    bounds = np.zeros((2, streams, len(ranges)), np.int32)
    for item, (stream, start, end) in enumerate(ranges):
        bounds[:, stream, item] = start, end
    start, end = jnp.asarray(bounds)
    row_start = jnp.zeros((streams, row_tiles, rows), jnp.int32)
    row_end = row_start + tile_schedule.EVERYTHING
    return tile_schedule.TileSchedule(jnp.asarray(q_tile, jnp.int32), start, end, start, end, row_start, row_end)


def expected(q, streams, layer, schedule, *, scale):
    """Output and log-sum-exp of a schedule in float64: all keys of all streams, masked."""
    q, tables = np.asarray(q.astype(jnp.float32), np.float64), jax.tree.map(np.asarray, schedule)
    streams = [KVCache(*stream.dequantised(jnp.float32)) for stream in streams]
    k, v = (
        np.concatenate([np.asarray(part[layer].astype(jnp.float32), np.float64) for part in parts], axis=1)
        for parts in zip(*(stream[:2] for stream in streams), strict=True)
    )
    masks = []
    for index, stream in enumerate(streams):
        key = np.arange(stream.k.shape[2])
        start = np.maximum(tables.row_start[index, tables.q_tile], tables.item_start[index][:, None])[..., None]
        end = np.minimum(tables.row_end[index, tables.q_tile], tables.item_end[index][:, None])[..., None]
        masks.append((key >= start) & (key < end))
    mask = np.concatenate(masks, axis=-1)
    logits = np.where(mask, np.einsum("kird,ksd->kirs", q[:, tables.q_tile], k) * scale, -np.inf)
    maximum = logits.max(axis=-1, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(maximum), maximum, 0))
    total = weights.sum(axis=-1)
    with np.errstate(divide="ignore"):
        lse = np.log(total) + np.where(total > 0, maximum[..., 0], 0)
    return np.einsum("kirs,ksd->kird", weights, v) / np.where(total > 0, total, 1)[..., None], lse


def assert_correct(got, q, streams, layer, schedule, *, scale, atol):
    """Compare with `expected` all rows that see a key in any item. Others (padding) must be finite.

    `atol` is relative to the largest expected output.
    """
    (out, lse), (want, want_lse) = got, expected(q, streams, layer, schedule, scale=scale)
    assert out.shape == want.shape and lse.shape == want_lse.shape and lse.dtype == jnp.float32
    out, lse = np.asarray(out.astype(jnp.float32)), np.asarray(lse)
    assert np.isfinite(out).all()
    used = np.asarray((schedule.row_end > schedule.row_start).any(axis=0))[np.asarray(schedule.q_tile)]
    out, lse, want, want_lse = (a[:, used] for a in (out, lse, want, want_lse))
    np.testing.assert_allclose(out, want, atol=atol * max(1, np.abs(want).max(initial=0)), rtol=0)
    np.testing.assert_allclose(lse, want_lse, atol=2e-5, rtol=1e-6)
    assert not out[np.isneginf(want_lse)].any()


@st.composite
def strides(draw):
    """(lengths of both streams, starts and ends [2, N]) of one stride of a video, ragged and padded as videos are:
    one group, windows larger than the video, no window, V of 10, 12 and 144, or a question of 1 to 40 rows."""
    visual = draw(st.sampled_from([10, 12, 144]))
    groups = draw(st.integers(1, 9 if visual == 144 else 30))
    timestamps = tuple(draw(st.lists(st.integers(1, 9), min_size=groups, max_size=groups)))
    layout = Layout(draw(st.integers(0, 20)), timestamps, visual)
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


def backend_like_the_reference(name: str, attend_tiles=reference.attend_tiles, width_multiple: int = 1) -> ModuleType:
    """A module that serves as a kernel's backend."""
    module = ModuleType(name)
    module.attend_tiles, module.refusal, module.WIDTH_MULTIPLE = attend_tiles, reference.refusal, width_multiple
    return module


def backends(float32: float, bfloat16: float) -> list:
    """Parameters (name, dtype, tolerance): every backend in the widest dtype that it multiplies."""
    reason = hopper.refusal(dtype="bfloat16", width=128, rows=64) or ""
    skip = pytest.mark.skipif(bool(reason), reason=reason)
    return [
        pytest.param("tpu", "float32", float32, id="tpu"),
        pytest.param("ampere", "float32", float32, id="ampere"),
        pytest.param("hopper", "bfloat16", bfloat16, id="hopper", marks=skip),
    ]
