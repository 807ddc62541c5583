"""The Triton kernel against the plain reference, in Pallas' interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import arrays, problem, strides

from pallas_kernels.attention import KVCache, ampere, reference, tile_schedule
from pallas_kernels.attention.tile_sizes import TileSizes

pytestmark = pytest.mark.skipif(ampere.triton is None, reason="this jax has no Pallas Triton")


@functools.partial(jax.jit, static_argnames=("tiles", "scale", "out_dtype"))
def kernel(q, streams, layer, table, tiles, scale, out_dtype=jnp.float32):
    return ampere.attend_tiles(q, streams, layer, table, scale=scale, tiles=tiles, out_dtype=out_dtype, interpret=True)


plainly = jax.jit(reference.attend_tiles, static_argnames=("scale", "out_dtype"))


def compare(q, streams, table, tiles, layer=1, scale=0.3, tolerance=3e-6, out_dtype=jnp.float32):
    """Both on tiles q [K, Q, rows, D]: equal wherever a row sees something in some stream, finite everywhere."""
    out, lse = kernel(q, streams, jnp.int32(layer), table, tiles, scale, out_dtype)
    want, want_lse = plainly(q, streams, layer, table, scale=scale, out_dtype=jnp.float32)
    assert out.shape == (*want.shape,) and out.dtype == out_dtype and lse.dtype == jnp.float32
    assert np.isfinite(out.astype(jnp.float32)).all()
    asked = np.asarray((table.row_end > table.row_start).any(axis=0))[np.asarray(table.query)]
    out, want = (np.asarray(a, np.float32)[:, asked] for a in (out, want))
    lse, want_lse = (np.asarray(a)[:, asked] for a in (lse, want_lse))
    np.testing.assert_allclose(out, want, atol=tolerance * max(1, np.abs(want).max(initial=0)), rtol=0)
    np.testing.assert_allclose(lse, want_lse, atol=1e-5, rtol=1e-6)


@given(
    strides(),
    st.integers(1, 3),
    st.sampled_from([TileSizes(16, 16), TileSizes(32, 64), TileSizes(64, 32)]),
    st.integers(0, 9),
)
@settings(max_examples=5, deadline=None)
def test_the_strides_of_a_video(stride, pieces, tiles, seed):
    lengths, k_start, k_end = stride
    k_start, k_end = k_start[:, -90:], k_end[:, -90:]
    q, streams = arrays(np.random.default_rng(seed), k_start.shape[1], lengths, 1, 3, 16, 2, jnp.float32)
    table = tile_schedule.split_items(tile_schedule.schedule_tiles(k_start, k_end, 3, tiles.rows), pieces, tiles.keys)
    compare(tile_schedule.pack_rows(q, 1, tiles.rows), streams, table, tiles)


@given(
    seed=st.integers(0, 99), count=st.sampled_from([1, 7, 30]), pieces=st.integers(1, 3),
    lengths=st.lists(st.sampled_from([0, 1, 5, 16, 37, 90]), min_size=1, max_size=4).filter(any),
    width=st.sampled_from([16, 24, 72]), layer=st.integers(0, 1),
)  # fmt: skip
@settings(max_examples=6, deadline=None)
def test_any_ranges_in_any_number_of_streams(seed, count, pieces, lengths, width, layer):
    q, streams, k_start, k_end = problem(seed, count, lengths, width=width)
    tiles = TileSizes(16, 32)
    table = tile_schedule.split_items(tile_schedule.schedule_tiles(k_start, k_end, 2, tiles.rows), pieces, 16)
    compare(tile_schedule.pack_rows(q, 2, tiles.rows), streams, table, tiles, layer)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 0.01), (jnp.float16, 2e-3)])
def test_half_precision_is_close_and_sums_in_float32(dtype, tolerance):
    q, streams, k_start, k_end = problem(3, 16, [700, 50], 1, 1, 64, dtype=dtype)
    k_start[:], k_end[:] = 0, [[700], [50]]
    compare(
        tile_schedule.pack_rows(q, 1, 16),
        streams,
        tile_schedule.schedule_tiles(k_start, k_end, 1, 16),
        TileSizes(16, 64),
        tolerance=tolerance,
    )
    compare(
        tile_schedule.pack_rows(q, 1, 16),
        streams,
        tile_schedule.schedule_tiles(k_start, k_end, 1, 16),
        TileSizes(16, 64),
        tolerance=tolerance,
        out_dtype=dtype,
    )


def test_items_that_share_a_tile_of_rows():
    """As in decoding: each item reads one contiguous run of one of four streams, all of it clear."""
    q, streams, _, _ = problem(4, 5, [40, 70, 9, 33], 2, 3, 24)
    runs = [(0, 3, 38), (1, 0, 64), (1, 64, 70), (2, 8, 9), (3, 5, 5), (3, 1, 33)]
    first = np.zeros((4, len(runs)), np.int32)
    stop = first.copy()
    for item, (stream, low, high) in enumerate(runs):
        first[stream, item], stop[stream, item] = low, high
    everywhere = np.zeros((4, 1, 16), np.int32)
    everywhere_stop = np.full_like(everywhere, tile_schedule.EVERYTHING)
    table = tile_schedule.TileSchedule(
        np.zeros(len(runs), np.int32), first, stop, first, stop, everywhere, everywhere_stop
    )
    tiles = TileSizes(16, 32)
    compare(tile_schedule.pack_rows(q, 2, 16), streams, jax.tree.map(jnp.asarray, table), tiles)
    _, lse = kernel(tile_schedule.pack_rows(q, 2, 16), streams, 0, jax.tree.map(jnp.asarray, table), tiles, 0.3)
    assert np.isneginf(lse[:, 4]).all(), "the item of an empty run saw something"


def test_keys_outside_the_ranges_do_not_matter():
    q, streams, _, _ = problem(1, 5, [83], 1, 2, 16)
    k_start, k_end = np.asarray([[7, 9, 7, 20, 8]], np.int32), np.asarray([[60, 71, 69, 71, 55]], np.int32)
    table = tile_schedule.schedule_tiles(k_start, k_end, 2, 16)

    def poison(a):
        return a.at[:, :, :7].set(1e30).at[:, :, 71:].set(-1e30)

    spoiled = (KVCache(*(poison(part) for part in streams[0])),)
    want, got = (
        kernel(tile_schedule.pack_rows(q, 1, 16), s, 1, table, TileSizes(16, 16), 0.3)[0][:, 0, :10]
        for s in (streams, spoiled)
    )
    np.testing.assert_array_equal(got, want)


def test_large_logits_do_not_overflow():
    q, streams, k_start, k_end = problem(2, 5, [70], 1, 2, 16)
    k_start[:], k_end[:] = 0, [[70, 64, 30, 1, 33]]
    compare(
        tile_schedule.pack_rows(q * 1e4, 1, 16),
        streams,
        tile_schedule.schedule_tiles(k_start, k_end, 2, 16),
        TileSizes(16, 16),
        tolerance=1e-3,
    )


def test_layers_may_be_scanned():
    q, streams, k_start, k_end = problem(5, 8, [40, 21], 1, 2, 16)
    table, tiles, packed = (
        tile_schedule.schedule_tiles(k_start, k_end, 2, 16),
        TileSizes(16, 16),
        tile_schedule.pack_rows(q, 1, 16),
    )

    def step(carry, layer):
        return (carry, kernel(packed, streams, layer, table, tiles, 0.3)[0])

    _, got = jax.jit(lambda: jax.lax.scan(step, 0, jnp.arange(2)))()
    for layer in (0, 1):
        np.testing.assert_allclose(got[layer], kernel(packed, streams, layer, table, tiles, 0.3)[0], atol=1e-6)
    assert np.abs(got[0] - got[1]).max() > 0.1


@pytest.mark.parametrize("width", [16, 24, 64, 72, 80, 128, 136])
@pytest.mark.parametrize(("rows", "warps"), [(16, 4), (64, 4), (128, 4), (128, 8)])
def test_parts_cover_a_head_without_leaving_it(width, rows, warps):
    parts = ampere._parts(width, rows, warps)
    covered = sorted({column for offset, size in parts for column in range(offset, offset + size)})
    assert covered == list(range(width))
    assert all(size >= 16 and size & (size - 1) == 0 for _, size in parts)
    assert sum(size for _, size in parts) < width + 16


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": jnp.int8}, "not int8"), ({"width": 8}, "head widths"), ({"width": 20}, "head widths"),
        ({"rows": 8}, "8 rows"), ({"rows": 48}, "48 rows"), ({"keys": 24}, "24 keys"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_with_the_reason(change, reason):
    able = {"dtype": jnp.bfloat16, "width": 72, "rows": 16, "keys": 64}
    assert ampere.refusal(**able) is None
    assert reason in ampere.refusal(**able | change)


@pytest.mark.parametrize(("rows", "keys", "scale"), [(16, 24, 0.3), (32, 16, 0.3), (16, 16, -0.3)])
def test_tiles_and_scales_that_do_not_fit_are_errors(rows, keys, scale):
    q, streams, k_start, k_end = problem(0, 4, [9], width=16)
    with pytest.raises(ValueError):
        kernel(
            tile_schedule.pack_rows(q, 2, 16),
            streams,
            0,
            tile_schedule.schedule_tiles(k_start, k_end, 2, 16),
            TileSizes(rows, keys),
            scale,
        )
