"""The Hopper kernel in Mosaic GPU's interpreter, with its race detector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu
from problems import arrays, assert_correct, hardest_case, problem, segment_items, split_schedule, strides

from pallas_kernels.attention import hopper, tile_schedule
from pallas_kernels.attention.tile_sizes import TileSizes

ATOL = {jnp.dtype(jnp.bfloat16): 8e-3, jnp.dtype(jnp.float16): 1e-3}
"""Weights are rounded to the dtype (2^-9, 2^-12) before they are multiplied with the values."""

TOO_OLD = jax.__version_info__ < (0, 11)
interpreted = pytest.mark.skipif(TOO_OLD, reason=str(hopper.refusal(dtype=jnp.bfloat16, width=64, rows=64)))


def run(q, streams, layer, schedule, tiles, out_dtype=jnp.float32):
    interpret = plgpu.InterpretGPUParams(detect_races=True)
    return hopper.attend_tiles(
        q, streams, layer, schedule, tiles=tiles, scale=q.shape[-1] ** -0.5, out_dtype=out_dtype, interpret=interpret
    )


def check(q, streams, schedule, tiles, layer=1):
    """Run the kernel on query tiles [K, Q, rows, D], without races, and compare."""
    from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import get_races

    kernel = jax.jit(run, static_argnums=4)
    got = jax.block_until_ready(kernel(q, streams, jnp.int32(layer), schedule, tiles))
    assert not get_races().races_found
    assert_correct(got, q, streams, layer, schedule, scale=q.shape[-1] ** -0.5, atol=ATOL[q.dtype])


def check_ranges(q, streams, k_start, k_end, tiles, pieces=1, layer=1):
    kv_heads = streams[0].k.shape[1]
    schedule = split_schedule(k_start, k_end, q.shape[1] // kv_heads, tiles.rows, pieces)
    check(tile_schedule.pack_rows(q, kv_heads, tiles.rows), streams, schedule, tiles, layer)


def segments(rows=64):
    """As in decoding: five items share two query tiles; each reads one segment of one of three streams."""
    return segment_items([(0, 0, 40), (0, 40, 90), (1, 3, 33), (2, 0, 0), (2, 5, 6)], 3, 2, rows, [0, 1, 0, 1, 1])


@interpreted
def test_hardest_case(monkeypatch):
    """Two consumers, and all tasks in one program, some without keys; a stream that is empty and one to be padded."""
    monkeypatch.setattr(hopper, "_MIN_PROGRAMS", 1)
    tiles = TileSizes(128, 32, 2)
    q, streams, schedule = hardest_case((150, 0, 37), tiles, 2, width=16, dtype=jnp.bfloat16)
    check(q, streams, schedule, tiles)


@pytest.mark.kernels
@interpreted
@given(
    seed=st.integers(0, 99),
    count=st.sampled_from([1, 20, 40]),
    lengths=st.lists(st.sampled_from([0, 1, 10, 37, 80]), min_size=1, max_size=4).filter(any),
    heads=st.sampled_from([(1, 1), (2, 3)]),
    width=st.sampled_from([16, 32]),
    rows=st.sampled_from([64, 128]),
    keys=st.sampled_from([32, 64]),
    stages=st.integers(1, 3),
    pieces=st.integers(1, 2),
    layer=st.integers(0, 1),
    dtype=st.sampled_from([jnp.bfloat16, jnp.float16]),
)
@settings(max_examples=6)
def test_random_ranges(seed, count, lengths, heads, width, rows, keys, stages, pieces, layer, dtype):
    ranges = problem(seed, count, lengths, *heads, width, dtype=dtype)
    check_ranges(*ranges, TileSizes(rows, keys, stages), pieces, layer)


@pytest.mark.kernels
@interpreted
@given(stride=strides(), seed=st.integers(0, 9), pieces=st.integers(1, 3), rows=st.sampled_from([64, 128]))
@settings(max_examples=4)
def test_strides_of_videos(stride, seed, pieces, rows):
    lengths, k_start, k_end = stride
    q, streams = arrays(np.random.default_rng(seed), k_start.shape[1], lengths, 1, 1, 16, 2, jnp.bfloat16)
    check_ranges(q, streams, k_start, k_end, TileSizes(rows, 64, 2), pieces)


@pytest.mark.kernels
@interpreted
@pytest.mark.parametrize("width", [48, 80, 128])
def test_head_widths(width):
    check_ranges(*problem(1, 70, [90, 40], 1, 2, width, dtype=jnp.bfloat16), TileSizes(128, 64, 2))


@pytest.mark.kernels
@interpreted
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_tasks_that_share_a_program(stages, monkeypatch):
    """The ring and every barrier continue from one task to the next."""
    monkeypatch.setattr(hopper, "_MIN_PROGRAMS", 1)
    q, streams = arrays(np.random.default_rng(0), 256, [90, 40, 8], 2, 1, 16, 2, jnp.bfloat16)
    check(tile_schedule.pack_rows(q, 2, 128), streams, segments(128), TileSizes(128, 32, stages))


@interpreted
def test_programs_run_the_items_that_the_schedule_names_and_keep_the_rows_that_are_asked_for():
    """Three programs a head, one without an item; of 64 rows the results of 8 are written."""
    q, streams = arrays(np.random.default_rng(0), 128, [90, 40, 8], 2, 1, 16, 2, jnp.bfloat16)
    q, schedule = tile_schedule.pack_rows(q, 2, 64), segments()
    schedule = schedule._replace(first_item=jnp.asarray([0, 3, 3, 5], jnp.int32))
    out, lse = jax.jit(run, static_argnums=4)(q, streams, jnp.int32(1), schedule, TileSizes(64, 32, 3, kept=8))
    assert out.shape == (2, 5, 8, 16)
    kept = jax.tree.map(lambda a: a[..., :8], schedule.row_start), jax.tree.map(lambda a: a[..., :8], schedule.row_end)
    schedule = schedule._replace(row_start=kept[0], row_end=kept[1])
    assert_correct((out, lse[:, :, :8]), q[:, :, :8], streams, 1, schedule, scale=0.25, atol=ATOL[q.dtype])


@pytest.mark.kernels
@interpreted
def test_layers_may_be_scanned():
    q, streams = arrays(np.random.default_rng(0), 128, [90, 40, 8], 1, 1, 16, 2, jnp.bfloat16)
    q, schedule = tile_schedule.pack_rows(q, 1, 64), segments()

    @jax.jit
    def all_layers(q, streams, schedule):
        def step(_, layer):
            return None, run(q, streams, layer, schedule, TileSizes(64, 32, 2), out_dtype=jnp.bfloat16)

        return jax.lax.scan(step, None, jnp.arange(2))[1]

    out, lse = all_layers(q, streams, schedule)
    assert out.dtype == jnp.bfloat16
    for layer in range(2):
        assert_correct((out[layer], lse[layer]), q, streams, layer, schedule, scale=0.25, atol=2e-2)


@interpreted
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": jnp.float32}, "bfloat16"),
        ({"width": 72}, "multiples of 16"),
        ({"width": 144}, "128"),
        ({"rows": 96}, "64 or 128"),
        ({"keys": 144}, "multiple of 64"),
        ({"keys": 320}, "256"),
    ],
)
def test_refusals_name_the_limit(change, reason):
    supported = {"dtype": jnp.bfloat16, "width": 128, "rows": 128, "keys": 128}
    assert hopper.refusal(**supported) is None
    assert reason in hopper.refusal(**supported | change)


@pytest.mark.skipif(not TOO_OLD, reason="this jax is new enough")
def test_an_old_jax_is_refused():
    q, streams, k_start, k_end = problem(0, 4, [8], 1, 1, 16, dtype=jnp.bfloat16)
    schedule, tiles = split_schedule(k_start, k_end, 1, 64), TileSizes(64, 64)
    with pytest.raises(ValueError, match="jax 0.11"):
        hopper.attend_tiles(
            tile_schedule.pack_rows(q, 1, 64), streams, 0, schedule, scale=1.0, tiles=tiles, out_dtype=q.dtype
        )
