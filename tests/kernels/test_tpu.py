"""The TPU kernel in Pallas' interpreters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu
from problems import arrays, assert_correct, hardest_case, in_int8, problem, segment_items, split_schedule, strides

from pallas_kernels.attention import tile_schedule, tpu, tpu_step
from pallas_kernels.attention.tile_sizes import TileSizes

SCALE = 0.3


def run(q, streams, layer, schedule, tiles, interpret=True):
    return tpu.attend_tiles(
        q, streams, jnp.int32(layer), schedule, scale=SCALE, tiles=tiles, out_dtype=jnp.float32, interpret=interpret
    )


def check(q, streams, schedule, tiles, layer=1, interpret=True):
    """Run the kernel on query tiles [K, Q, rows, D] and compare."""
    got = run(q, streams, layer, schedule, tiles, interpret)
    # The kernel rounds weights to the values' dtype before it multiplies.
    atol = 2e-5 if q.dtype == jnp.float32 else 0.03
    assert_correct(got, q, streams, layer, schedule, scale=SCALE, atol=atol)


def test_hardest_case():
    """Streams that must be padded, and one that is shorter than a tile."""
    tiles = TileSizes(16, 128, 3)
    q, streams, schedule = hardest_case((700, 37), tiles, 2, width=24)
    check(q, streams, schedule, tiles)


def test_caches_in_int8():
    tiles = TileSizes(16, 128, 3)
    q, streams, schedule = hardest_case((700, 37), tiles, 2, width=24)
    check(q, in_int8(streams), schedule, tiles)


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_rows_are_taken_in_blocks(dtype):
    tiles = TileSizes(2 * tpu_step._BLOCK_ROWS, 128)
    q, streams, schedule = hardest_case((700, 37), tiles, 1, width=16)
    check(q, in_int8(streams) if dtype == jnp.int8 else streams, schedule, tiles)


@pytest.mark.kernels
@given(
    stride=strides(),
    rows=st.sampled_from([16, 48]),
    keys=st.sampled_from([128, 256]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    pieces=st.sampled_from([1, 3]),
)
@settings(max_examples=5)
def test_strides_of_videos(stride, rows, keys, dtype, pieces):
    lengths, k_start, k_end = stride
    repeats = 1 if k_start.shape[1] > 300 else 3
    q, streams = arrays(np.random.default_rng(0), k_start.shape[1], lengths, 1, repeats, 16, 2, dtype)
    schedule = split_schedule(k_start, k_end, repeats, rows, pieces, 128)
    check(tile_schedule.pack_rows(q, 1, rows), streams, schedule, TileSizes(rows, keys))


@pytest.mark.kernels
@given(
    seed=st.integers(0, 99),
    lengths=st.lists(st.sampled_from([1, 16, 37, 300, 784]), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 3, 128), (2, 1, 8), (3, 2, 72)]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    layer=st.integers(0, 1),
    stages=st.integers(1, 3),
    pieces=st.sampled_from([1, 2]),
)
@settings(max_examples=6)
def test_random_ranges(seed, lengths, heads, dtype, layer, stages, pieces):
    kv_heads, repeats, _ = heads
    q, streams, k_start, k_end = problem(seed, 11, lengths, *heads, dtype=dtype)
    schedule = split_schedule(k_start, k_end, repeats, 16, pieces, 1)
    check(tile_schedule.pack_rows(q * 0.5, kv_heads, 16), streams, schedule, TileSizes(16, 128, stages), layer)


@pytest.mark.kernels
@pytest.mark.parametrize("keys", [1024, 1152])
def test_large_tiles_are_masked_in_parts(keys):
    q, streams, k_start, k_end = problem(5, 24, [2000, 1304], width=16)
    check(tile_schedule.pack_rows(q, 2, 16), streams, split_schedule(k_start, k_end, 2, 16), TileSizes(16, keys))


@pytest.mark.kernels
def test_parts_of_large_tiles_need_no_mask_where_every_row_sees_them():
    tiles = TileSizes(16, 1024)
    q, streams, schedule = hardest_case((2100, 37), tiles, 1, width=16)
    check(q, streams, schedule, tiles)


@pytest.mark.kernels
@pytest.mark.parametrize("cores", [1, 2])
def test_copies_do_not_race(cores):
    """In this interpreter uninitialized memory is NaN, and reads past the end of an array raise."""
    rng = np.random.default_rng(0)
    lengths = (800, 48, 304, 16)
    _, streams = arrays(rng, 1, lengths, 4, 1, 16, 2, jnp.bfloat16)
    q = jnp.asarray(rng.normal(size=(4, 2, 16, 16)), jnp.bfloat16)
    which = rng.integers(0, len(lengths), 6)
    ranges = [(s, *np.sort(rng.integers(0, lengths[s] + 1, 2))) for s in which]
    schedule = segment_items(ranges, len(lengths), 2, 16, rng.integers(0, 2, 6))
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=cores)
    check(q, streams, schedule, TileSizes(16, 128, 3), interpret=params)
    assert interpreter.races is not None and not interpreter.races.races_found


@pytest.mark.kernels
def test_items_without_keys_give_zeros_and_minus_infinity():
    q, streams, k_start, k_end = problem(2, 16, [200, 50], width=16)
    schedule = split_schedule(k_start, k_end, 2, 16)
    schedule = schedule._replace(item_end=schedule.item_end.at[:, 0].set(schedule.item_start[:, 0]))
    schedule = schedule._replace(unmasked_start=schedule.item_start, unmasked_end=schedule.item_start)
    q = tile_schedule.pack_rows(q, 2, 16)
    out, lse = run(q, streams, 0, schedule, TileSizes(16, 128))
    assert not np.asarray(out)[:, 0].any() and np.isneginf(lse[:, 0]).all()
    assert_correct((out, lse), q, streams, 0, schedule, scale=SCALE, atol=2e-5)


@pytest.mark.kernels
def test_layers_and_schedules_may_be_traced():
    q, streams, k_start, k_end = problem(3, 8, [128, 64], width=16)
    q = tile_schedule.pack_rows(q, 2, 16)

    @jax.jit
    def all_layers(k_start, k_end):
        schedule = split_schedule(k_start, k_end, 2, 16)

        def one(_, layer):
            return None, run(q, streams, layer, schedule, TileSizes(16, 100))

        return jax.lax.scan(one, None, jnp.arange(2))[1]

    out, lse = all_layers(jnp.asarray(k_start), jnp.asarray(k_end))
    for layer in range(2):
        schedule = split_schedule(k_start, k_end, 2, 16)
        assert_correct((out[layer], lse[layer]), q, streams, layer, schedule, scale=SCALE, atol=2e-5)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        ({"dtype": jnp.float16, "width": 128, "rows": 16}, "bfloat16"),
        ({"dtype": jnp.bfloat16, "width": 256, "rows": 16}, "128"),
        ({"dtype": jnp.bfloat16, "width": 128, "rows": 24}, "16"),
        ({"dtype": "float32", "width": 128, "rows": 20}, "8"),
    ],
)
def test_what_cannot_run_is_refused(problem, reason):
    assert reason in tpu.refusal(**problem) and "\n" not in tpu.refusal(**problem)
    rows = problem["rows"]
    q = jnp.zeros((1, 1, rows, problem["width"]), problem["dtype"])
    schedule = split_schedule(np.zeros((1, 1), np.int32), np.ones((1, 1), np.int32), 1, rows)
    with pytest.raises(ValueError, match=reason):
        run(q, (), 0, schedule, TileSizes(rows, 128))


def test_what_can_run_is_not_refused():
    assert tpu.refusal(dtype=jnp.bfloat16, width=128, rows=16) is None
    assert tpu.refusal(dtype="float32", width=72, rows=24) is None
