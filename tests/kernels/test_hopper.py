"""The Hopper kernel in Mosaic GPU's interpreter, with its race detector, against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu
from problems import arrays, problem, strides

from pallas_kernels.attention import hopper, reference, tile_schedule
from pallas_kernels.attention.tile_sizes import TileSizes

TOLERANCE = {jnp.dtype(jnp.bfloat16): 8e-3, jnp.dtype(jnp.float16): 1e-3}
"""Absolute, of outputs up to 4: weights are rounded to the dtype (2^-9, 2^-12) before they meet the values."""

TOO_OLD = jax.__version_info__ < (0, 11)
interpreted = pytest.mark.skipif(TOO_OLD, reason=str(hopper.refusal(dtype=jnp.bfloat16, width=64, rows=64)))


def run(*args, tiles, **kwargs):
    return hopper.attend_tiles(*args, tiles=tiles, interpret=plgpu.InterpretGPUParams(detect_races=True), **kwargs)


def check(packed, streams, table, tiles, layer=1):
    """Compare rows that see anything; those that see no key of their item must be zeros and −inf. No races."""
    from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import get_races

    options = {"scale": packed.shape[-1] ** -0.5, "out_dtype": jnp.float32}
    kernel = jax.jit(lambda *args: run(*args, tiles=tiles, **options))
    out, lse = jax.block_until_ready(kernel(packed, streams, jnp.int32(layer), table))
    assert not get_races().races_found
    want, want_lse = reference.attend_tiles(packed, streams, layer, table, **options)
    asked = np.asarray((table.row_end > table.row_start).any(axis=0))[np.asarray(table.query)]
    out, lse, want, want_lse = (np.asarray(a)[:, asked] for a in (out, lse, want, want_lse))
    np.testing.assert_allclose(out, want, atol=TOLERANCE[packed.dtype], rtol=0)
    np.testing.assert_allclose(lse, want_lse, atol=1e-4)
    assert not out[np.isneginf(want_lse)].any()


def check_ranges(q, streams, k_start, k_end, tiles, pieces=1, layer=1):
    kv_heads = streams[0].k.shape[1]
    table = tile_schedule.schedule_tiles(jnp.asarray(k_start), jnp.asarray(k_end), q.shape[1] // kv_heads, tiles.rows)
    check(
        tile_schedule.pack_rows(q, kv_heads, tiles.rows),
        streams,
        tile_schedule.split_items(table, pieces, 8),
        tiles,
        layer,
    )


def runs_of_keys(rows=64):
    """As decoding does: five items share two tiles of rows, each reads one run of keys of one of three streams."""
    ranges = [(0, 0, 40), (0, 40, 90), (1, 3, 33), (2, 0, 0), (2, 5, 6)]
    bounds = np.zeros((2, 3, 5), np.int32)
    for item, (stream, first, stop) in enumerate(ranges):
        bounds[:, stream, item] = first, stop
    first, stop = jnp.asarray(bounds)
    sees = jnp.zeros((3, 2, rows), jnp.int32)
    return tile_schedule.TileSchedule(
        jnp.asarray([0, 1, 0, 1, 1]), first, stop, first, stop, sees, sees + tile_schedule.EVERYTHING
    )


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
@settings(max_examples=6, deadline=None)
def test_random_ranges(seed, count, lengths, heads, width, rows, keys, stages, pieces, layer, dtype):
    ranges = problem(seed, count, lengths, *heads, width, dtype=dtype)
    check_ranges(*ranges, TileSizes(rows, keys, stages), pieces, layer)


@interpreted
@given(stride=strides(), seed=st.integers(0, 9), pieces=st.integers(1, 3), rows=st.sampled_from([64, 128]))
@settings(max_examples=4, deadline=None)
def test_strides_of_videos(stride, seed, pieces, rows):
    lengths, k_start, k_end = stride
    q, streams = arrays(np.random.default_rng(seed), k_start.shape[1], lengths, 1, 1, 16, 2, jnp.bfloat16)
    check_ranges(q, streams, k_start, k_end, TileSizes(rows, 64, 2), pieces)


@interpreted
@pytest.mark.parametrize("width", [48, 80, 128])
def test_head_widths(width):
    check_ranges(*problem(1, 70, [90, 40], 1, 2, width, dtype=jnp.bfloat16), TileSizes(128, 64, 2))


@interpreted
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_units_that_share_a_program(stages, monkeypatch):
    """All of them in one program, some without keys: the ring and every barrier go on from one to the next."""
    monkeypatch.setattr(hopper, "_PROGRAMS", 1)
    q, streams = arrays(np.random.default_rng(0), 256, [90, 40, 8], 2, 1, 16, 2, jnp.bfloat16)
    check(tile_schedule.pack_rows(q, 2, 128), streams, runs_of_keys(128), TileSizes(128, 32, stages))


@interpreted
def test_layers_of_a_scan():
    q, streams = arrays(np.random.default_rng(0), 128, [90, 40, 8], 1, 1, 16, 2, jnp.bfloat16)
    packed, table = tile_schedule.pack_rows(q, 1, 64), runs_of_keys()
    options = {"scale": 0.25, "out_dtype": jnp.bfloat16}

    @jax.jit
    def layers(packed, streams, table):
        def step(_, layer):
            return (None, run(packed, streams, layer, table, tiles=TileSizes(64, 32, 2), **options))

        return jax.lax.scan(step, None, jnp.arange(2))[1]

    out, lse = layers(packed, streams, table)
    assert out.dtype == jnp.bfloat16
    for layer in range(2):
        want, want_lse = reference.attend_tiles(packed, streams, layer, table, **options)
        np.testing.assert_allclose(out[layer].astype(jnp.float32), want.astype(jnp.float32), atol=2e-2, rtol=0)
        np.testing.assert_allclose(lse[layer], want_lse, atol=1e-4)


@interpreted
def test_nothing_outside_an_item_is_read_into_it():
    """Huge stale keys and values right before, after and between the ranges change nothing."""
    q, streams = arrays(np.random.default_rng(0), 128, [90, 40, 8], 1, 1, 16, 2, jnp.bfloat16)
    table, tiles = runs_of_keys(), TileSizes(64, 32, 2)
    seen = np.zeros((3, 90), bool)
    for item in range(5):
        for stream in range(3):
            seen[stream, int(table.first[stream, item]) : int(table.stop[stream, item])] = True

    def spoil(a, seen):
        return jnp.where(seen[: a.shape[2], None], a, 1e4).astype(a.dtype)

    spoilt = [reference.KVCache(*(spoil(a, rows) for a in stream)) for stream, rows in zip(streams, seen, strict=True)]
    options = {"tiles": tiles, "scale": 0.25, "out_dtype": jnp.float32}
    packed = tile_schedule.pack_rows(q, 1, 64)
    out, lse = run(packed, spoilt, 0, table, **options)
    want, want_lse = run(packed, streams, 0, table, **options)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(lse, want_lse)


@interpreted
@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"dtype": jnp.float32}, "use bfloat16 or the reference"),
        ({"width": 72}, "multiples of 16"),
        ({"width": 144}, "up to 128"),
        ({"rows": 96}, "64 or 128 rows"),
        ({"keys": 144}, "multiple of 64"),
        ({"keys": 320}, "up to 256"),
    ],
)
def test_refusals_name_the_limit(wrong, says):
    right = {"dtype": jnp.bfloat16, "width": 128, "rows": 128, "keys": 128}
    assert hopper.refusal(**right) is None
    assert says in hopper.refusal(**right | wrong)


@pytest.mark.skipif(not TOO_OLD, reason="this jax is new enough")
def test_an_old_jax_is_refused():
    q, streams, k_start, k_end = problem(0, 4, [8], 1, 1, 16, dtype=jnp.bfloat16)
    table = tile_schedule.schedule_tiles(jnp.asarray(k_start), jnp.asarray(k_end), 1, 64)
    with pytest.raises(ValueError, match="needs jax 0.11"):
        hopper.attend_tiles(
            tile_schedule.pack_rows(q, 1, 64), streams, 0, table, scale=1.0, tiles=TileSizes(64, 64), out_dtype=q.dtype
        )
