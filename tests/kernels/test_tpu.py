"""The TPU kernel in Pallas' interpreters, against attention in the plainest terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu
from problems import arrays, problem, strides

from pallas_kernels.attention import KVCache, reference, tile_schedule, tpu
from pallas_kernels.attention.tile_sizes import TileSizes

SCALE = 0.3


def kernel(q, streams, layer, items, tiles, interpret=True):
    return tpu.attend_tiles(
        q, streams, jnp.int32(layer), items, scale=SCALE, tiles=tiles, out_dtype=jnp.float32, interpret=interpret
    )


def check(got, q, streams, layer, items):
    """Compare with the reference, but for rows of padding, which see nothing in any stream."""
    want = reference.attend_tiles(q, streams, layer, items, scale=SCALE, out_dtype=jnp.float32)
    asked = np.asarray((items.row_end > items.row_start).any(axis=0))[np.asarray(items.query)]
    assert np.isfinite(got[0]).all()
    out, want_out = (np.asarray(a[0])[:, asked] for a in (got, want))
    lse, want_lse = (np.asarray(a[1])[:, asked] for a in (got, want))
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(want_lse))
    # The kernel rounds weights to the values' dtype before it multiplies.
    np.testing.assert_allclose(out, want_out, atol=2e-5 if q.dtype == jnp.float32 else 0.03)
    np.testing.assert_allclose(lse, want_lse, atol=2e-5)


def prepare(k_start, k_end, repeats, rows, pieces=1, multiple=128):
    return tile_schedule.split_items(
        tile_schedule.schedule_tiles(jnp.asarray(k_start), jnp.asarray(k_end), repeats, rows), pieces, multiple
    )


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
    items = prepare(k_start, k_end, repeats, rows, pieces)
    q = tile_schedule.pack_rows(q, 1, rows)
    check(kernel(q, streams, 1, items, TileSizes(rows, keys)), q, streams, 1, items)


@given(
    seed=st.integers(0, 99),
    lengths=st.lists(st.sampled_from([1, 16, 37, 300, 784]), min_size=1, max_size=4),
    layout=st.sampled_from([(1, 3, 128), (2, 1, 8), (3, 2, 72)]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    layer=st.integers(0, 1),
    stages=st.integers(1, 3),
    pieces=st.sampled_from([1, 2]),
)
@settings(max_examples=6)
def test_any_ranges(seed, lengths, layout, dtype, layer, stages, pieces):
    kv_heads, repeats, _ = layout
    q, streams, k_start, k_end = problem(seed, 11, lengths, *layout, dtype=dtype)
    items = prepare(k_start, k_end, repeats, 16, pieces, 1)
    q = tile_schedule.pack_rows(q * 0.5, kv_heads, 16)
    check(kernel(q, streams, layer, items, TileSizes(16, 128, stages)), q, streams, layer, items)


@pytest.mark.parametrize("keys", [1024, 1152])
def test_large_tiles_are_masked_in_parts(keys):
    q, streams, k_start, k_end = problem(5, 24, [2000, 1304], width=16)
    items, q = prepare(k_start, k_end, 2, 16), tile_schedule.pack_rows(q, 2, 16)
    check(kernel(q, streams, 1, items, TileSizes(16, keys)), q, streams, 1, items)


def clear_items(rng, lengths, items, tiles_of_rows, rows):
    """As decoding asks: every item one clear range of one stream; items share tiles of rows."""
    which = rng.integers(0, len(lengths), items)
    bounds = np.sort([rng.integers(0, lengths[s] + 1, 2) for s in which], axis=1).T
    first, stop = (np.where(np.arange(len(lengths))[:, None] == which, b, 0).astype(np.int32) for b in bounds)
    everything = jnp.full((len(lengths), tiles_of_rows, rows), tile_schedule.EVERYTHING, jnp.int32)
    query = jnp.asarray(rng.integers(0, tiles_of_rows, items), jnp.int32)
    return tile_schedule.TileSchedule(
        query, *map(jnp.asarray, (first, stop, first, stop)), jnp.zeros_like(everything), everything
    )


@pytest.mark.parametrize("cores", [1, 2])
def test_copies_do_not_race(cores):
    """Uninitialized memory is NaN there, and reads past the end of an array raise."""
    rng = np.random.default_rng(0)
    lengths = (800, 48, 304, 16)
    _, streams = arrays(rng, 1, lengths, 4, 1, 16, 2, jnp.bfloat16)
    q = jnp.asarray(rng.normal(size=(4, 2, 16, 16)), jnp.bfloat16)
    items = clear_items(rng, lengths, 6, 2, 16)
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=cores)
    got = jax.block_until_ready(kernel(q, streams, 1, items, TileSizes(16, 128, 3), params))
    assert interpreter.races is not None and not interpreter.races.races_found
    check(got, q, streams, 1, items)


def test_keys_outside_the_ranges_do_not_matter():
    q, streams, _, _ = problem(1, 16, [400, 300], width=16)
    k_start, k_end = np.full((2, 16), 7, np.int32), np.full((2, 16), 290, np.int32)

    def spoil(a):
        return a.at[:, :, :7].set(1e30).at[:, :, 290:].set(-1e30)

    spoiled = tuple(KVCache(spoil(s.k), spoil(s.v)) for s in streams)
    items, q = prepare(k_start, k_end, 2, 32), tile_schedule.pack_rows(q, 2, 32)
    for got, want in zip(*(kernel(q, s, 0, items, TileSizes(32, 128)) for s in (spoiled, streams)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_items_without_keys_give_zeros_and_minus_infinity():
    q, streams, k_start, k_end = problem(2, 16, [200, 50], width=16)
    items = prepare(k_start, k_end, 2, 16)
    items = items._replace(stop=items.stop.at[:, 0].set(items.first[:, 0]))
    items = items._replace(full_start=items.first, full_end=items.first)
    q = tile_schedule.pack_rows(q, 2, 16)
    out, lse = kernel(q, streams, 0, items, TileSizes(16, 128))
    assert not np.asarray(out)[:, 0].any() and np.isneginf(lse[:, 0]).all()
    check((out, lse), q, streams, 0, items)


def test_layers_and_work_may_be_traced():
    q, streams, k_start, k_end = problem(3, 8, [128, 64], width=16)
    q = tile_schedule.pack_rows(q, 2, 16)

    @jax.jit
    def all_layers(k_start, k_end):
        items = tile_schedule.schedule_tiles(k_start, k_end, 2, 16)

        def one(_, layer):
            return (None, kernel(q, streams, layer, items, TileSizes(16, 100)))

        return jax.lax.scan(one, None, jnp.arange(2))[1]

    out, lse = all_layers(jnp.asarray(k_start), jnp.asarray(k_end))
    for layer in range(2):
        check((out[layer], lse[layer]), q, streams, layer, prepare(k_start, k_end, 2, 16))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"dtype": jnp.float16, "width": 128, "rows": 16}, "bfloat16"),
        ({"dtype": jnp.bfloat16, "width": 256, "rows": 16}, "128"),
        ({"dtype": jnp.bfloat16, "width": 128, "rows": 24}, "16"),
        ({"dtype": "float32", "width": 128, "rows": 20}, "8"),
    ],
)
def test_what_cannot_run_is_refused(asked, said):
    assert said in tpu.refusal(**asked) and "\n" not in tpu.refusal(**asked)
    q = jnp.zeros((1, 1, asked["rows"], asked["width"]), asked["dtype"])
    with pytest.raises(ValueError, match=said):
        kernel(q, (), 0, prepare(np.zeros((1, 1)), np.ones((1, 1)), 1, asked["rows"]), TileSizes(asked["rows"], 128))


def test_what_can_run_is_not_refused():
    assert tpu.refusal(dtype=jnp.bfloat16, width=128, rows=16) is None
    assert tpu.refusal(dtype="float32", width=72, rows=24) is None
