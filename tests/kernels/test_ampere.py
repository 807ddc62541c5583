"""The Triton kernel in Pallas' interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import arrays, assert_correct, hardest_case, in_int8, problem, segment_items, split_schedule, strides

from pallas_kernels.attention import ampere, tile_schedule
from pallas_kernels.attention.tile_sizes import TileSizes

pytestmark = pytest.mark.skipif(ampere.triton is None, reason="this jax has no Pallas Triton")
SCALE = 0.3


@functools.partial(jax.jit, static_argnames=("tiles", "scale", "out_dtype"))
def run(q, streams, layer, schedule, tiles, scale=SCALE, out_dtype=jnp.float32):
    return ampere.attend_tiles(
        q, streams, layer, schedule, scale=scale, tiles=tiles, out_dtype=out_dtype, interpret=True
    )


def check(q, streams, schedule, tiles, layer=1, atol=3e-6, out_dtype=jnp.float32):
    """Run the kernel on query tiles [K, Q, rows, D] and compare."""
    got = run(q, streams, jnp.int32(layer), schedule, tiles, out_dtype=out_dtype)
    assert got[0].dtype == out_dtype
    assert_correct(got, q, streams, layer, schedule, scale=SCALE, atol=atol)


def test_hardest_case():
    """A head width of two column parts, and an empty stream, too."""
    tiles = TileSizes(16, 16)
    q, streams, schedule = hardest_case((110, 0, 21), tiles, 2, width=24)
    check(q, streams, schedule, tiles)


def test_caches_in_int8():
    tiles = TileSizes(16, 16)
    q, streams, schedule = hardest_case((110, 0, 21), tiles, 2, width=24)
    check(q, in_int8(streams), schedule, tiles)


@pytest.mark.kernels
@given(
    strides(),
    st.integers(1, 3),
    st.sampled_from([TileSizes(16, 16), TileSizes(32, 64), TileSizes(64, 32)]),
    st.integers(0, 9),
)
@settings(max_examples=5)
def test_strides_of_videos(stride, pieces, tiles, seed):
    lengths, k_start, k_end = stride
    k_start, k_end = k_start[:, -90:], k_end[:, -90:]
    q, streams = arrays(np.random.default_rng(seed), k_start.shape[1], lengths, 1, 3, 16, 2, jnp.float32)
    schedule = split_schedule(k_start, k_end, 3, tiles.rows, pieces, tiles.keys)
    check(tile_schedule.pack_rows(q, 1, tiles.rows), streams, schedule, tiles)


@pytest.mark.kernels
@given(
    seed=st.integers(0, 99), count=st.sampled_from([1, 7, 30]), pieces=st.integers(1, 3),
    lengths=st.lists(st.sampled_from([0, 1, 5, 16, 37, 90]), min_size=1, max_size=4).filter(any),
    width=st.sampled_from([16, 24, 72]), layer=st.integers(0, 1),
)  # fmt: skip
@settings(max_examples=6)
def test_random_ranges(seed, count, pieces, lengths, width, layer):
    q, streams, k_start, k_end = problem(seed, count, lengths, width=width)
    schedule = split_schedule(k_start, k_end, 2, 16, pieces, 16)
    check(tile_schedule.pack_rows(q, 2, 16), streams, schedule, TileSizes(16, 32), layer)


@pytest.mark.kernels
@pytest.mark.parametrize(("dtype", "atol"), [(jnp.bfloat16, 0.01), (jnp.float16, 2e-3)])
@pytest.mark.parametrize("own_dtype", [True, False])
def test_half_precision_sums_in_float32(dtype, atol, own_dtype):
    q, streams, k_start, k_end = problem(3, 16, [700, 50], 1, 1, 64, dtype=dtype)
    k_start[:], k_end[:] = 0, [[700], [50]]
    schedule, out_dtype = split_schedule(k_start, k_end, 1, 16), dtype if own_dtype else jnp.float32
    check(tile_schedule.pack_rows(q, 1, 16), streams, schedule, TileSizes(16, 64), atol=atol, out_dtype=out_dtype)


@pytest.mark.kernels
def test_items_that_share_a_query_tile():
    """As in decoding: each item reads one segment of one of four streams, without a mask; one segment is empty."""
    q, streams, _, _ = problem(4, 5, [40, 70, 9, 33], 2, 3, 24)
    ranges = [(0, 3, 38), (1, 0, 64), (1, 64, 70), (2, 8, 9), (3, 5, 5), (3, 1, 33)]
    schedule = segment_items(ranges, 4, 1, 16, [0] * len(ranges))
    check(tile_schedule.pack_rows(q, 2, 16), streams, schedule, TileSizes(16, 32))


@pytest.mark.kernels
def test_large_logits_do_not_overflow():
    q, streams, k_start, k_end = problem(2, 5, [70], 1, 2, 16)
    k_start[:], k_end[:] = 0, [[70, 64, 30, 1, 33]]
    q = tile_schedule.pack_rows(q * 1e4, 1, 16)
    check(q, streams, split_schedule(k_start, k_end, 2, 16), TileSizes(16, 16), atol=1e-3)


@pytest.mark.kernels
def test_layers_may_be_scanned():
    q, streams, k_start, k_end = problem(5, 8, [40, 21], 1, 2, 16)
    schedule, tiles, q = split_schedule(k_start, k_end, 2, 16), TileSizes(16, 16), tile_schedule.pack_rows(q, 1, 16)

    def step(carry, layer):
        return carry, run(q, streams, layer, schedule, tiles)

    _, (out, lse) = jax.jit(lambda: jax.lax.scan(step, 0, jnp.arange(2)))()
    for layer in (0, 1):
        assert_correct((out[layer], lse[layer]), q, streams, layer, schedule, scale=SCALE, atol=3e-6)


@pytest.mark.parametrize("width", [16, 24, 64, 72, 80, 128, 136])
@pytest.mark.parametrize(("rows", "warps"), [(16, 4), (64, 4), (128, 4), (128, 8)])
def test_column_parts_cover_a_head_without_leaving_it(width, rows, warps):
    parts = ampere._column_parts(width, rows, warps)
    covered = sorted({column for offset, size in parts for column in range(offset, offset + size)})
    assert covered == list(range(width))
    assert all(size >= 16 and size & (size - 1) == 0 for _, size in parts)
    assert sum(size for _, size in parts) < width + 16


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": jnp.int8}, "int8"), ({"width": 8}, "width"), ({"width": 20}, "width"),
        ({"rows": 8}, "8 rows"), ({"rows": 48}, "48 rows"), ({"keys": 24}, "24 keys"),
    ],
)  # fmt: skip
def test_refusals_name_the_limit(change, reason):
    supported = {"dtype": jnp.bfloat16, "width": 72, "rows": 16, "keys": 64}
    assert ampere.refusal(**supported) is None
    assert reason in ampere.refusal(**supported | change)


@pytest.mark.parametrize(("rows", "keys", "scale"), [(16, 24, 0.3), (32, 16, 0.3), (16, 16, -0.3)])
def test_tiles_and_scales_that_do_not_fit_are_errors(rows, keys, scale):
    q, streams, k_start, k_end = problem(0, 4, [9], width=16)
    schedule = split_schedule(k_start, k_end, 2, 16)
    with pytest.raises(ValueError):
        run(tile_schedule.pack_rows(q, 2, 16), streams, 0, schedule, TileSizes(rows, keys), scale)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_every_number_of_8_bits_is_widened_exactly(dtype):
    numbers = jnp.arange(-128, 128, dtype=jnp.int8)
    assert (ampere._widened(numbers, dtype) == numbers.astype(dtype)).all()
