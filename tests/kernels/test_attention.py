"""Range attention, against softmax written out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import in_int8, problem

from pallas_kernels.attention import REFERENCE, dispatch, plan_attention, reference
from pallas_kernels.attention.tile_sizes import TileSizes


@partial(jax.jit, static_argnames=("rows", "keys", "other_keys", "parallel"))
def attend(q, streams, k_start, k_end, layer=0, rows=72, keys=512, other_keys=0, parallel=1):
    """The reference with tiles of its own."""
    tiles = TileSizes(rows=rows, keys=keys, other_keys=other_keys, parallel=parallel)
    heads = q.shape[1]
    plan = plan_attention(REFERENCE, k_start, k_end, heads=heads, streams=streams, tiles=tiles)
    return dispatch.attend(q, streams, plan, layer=layer)


key_mass = jax.jit(reference.key_mass, static_argnames="key_tile")


def plainly(q, streams, k_start, k_end, layer=0, scale=None):
    """float64 softmax over the ranges: out [N, H, D], lse [N, H], weights of every stream [N, H, S]."""
    q = np.asarray(q, np.float64)
    heads, kv_heads = q.shape[1], streams[0].k.shape[1]

    def rows(part):
        return np.repeat(np.swapaxes(np.asarray(part[layer], np.float64), 0, 1), heads // kv_heads, axis=1)

    wide = [stream.dequantised(jnp.float32) for stream in streams]
    keys, values = (np.concatenate([rows(part) for part in parts]) for parts in zip(*wide, strict=True))
    seen = np.concatenate(
        [
            (np.arange(s.k.shape[2]) >= low[:, None]) & (np.arange(s.k.shape[2]) < high[:, None])
            for s, low, high in zip(streams, k_start, k_end, strict=True)
        ],
        axis=1,
    )[:, None]
    logits = np.where(seen, np.einsum("nhd,shd->nhs", q, keys) * (scale or q.shape[-1] ** -0.5), -np.inf)
    with np.errstate(divide="ignore"):
        lse = np.log(np.exp(logits).sum(axis=-1))
    weights = np.where(seen, np.exp(logits - np.where(np.isinf(lse), 0, lse)[..., None]), 0)
    return (
        np.einsum("nhs,shd->nhd", weights, values),
        lse,
        np.split(weights, np.cumsum([s.k.shape[2] for s in streams])[:-1], axis=-1),
    )


@given(
    seed=st.integers(0, 99),
    count=st.sampled_from([1, 3, 8, 21]),
    lengths=st.lists(st.sampled_from([1, 5, 16, 37]), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 3)]),
    tiles=st.sampled_from([(4, 4), (8, 16), (256, 512)]),
    layer=st.integers(0, 1),
    parallel=st.sampled_from([1, 2, 8]),
)
@settings(max_examples=10)  # each compiles
def test_attention_is_softmax_over_the_ranges(seed, count, lengths, heads, tiles, layer, parallel):
    q, streams, k_start, k_end = problem(seed, count, lengths, *heads)
    got, lse = attend(q, streams, k_start, k_end, layer=layer, rows=tiles[0], keys=tiles[1], parallel=parallel)
    want, want_lse, _ = plainly(q, streams, k_start, k_end, layer)
    np.testing.assert_allclose(got, want, atol=3e-6)
    np.testing.assert_allclose(lse, want_lse, atol=3e-6)


@pytest.mark.parametrize("parallel", [1, 3])
def test_caches_in_int8_are_read_as_their_scales_say(parallel):
    q, streams, k_start, k_end = problem(4, 21, [37, 30])
    streams = in_int8(streams)
    got, lse = attend(q, streams, k_start, k_end, layer=1, rows=16, keys=8, parallel=parallel)
    want, want_lse, _ = plainly(q, streams, k_start, k_end, 1)
    np.testing.assert_allclose(got, want, atol=3e-6)
    np.testing.assert_allclose(lse, want_lse, atol=3e-6)


def test_every_stream_may_have_tiles_of_its_own():
    q, streams, k_start, k_end = problem(5, 21, [37, 30])
    want, _, _ = plainly(q, streams, k_start, k_end)
    for keys, others, parallel in ((4, 16, 1), (16, 4, 3)):
        got, _ = attend(q, streams, k_start, k_end, rows=8, keys=keys, other_keys=others, parallel=parallel)
        np.testing.assert_allclose(got, want, atol=3e-6)


def test_capacity_after_the_last_key_changes_no_bit():
    q, streams, k_start, k_end = problem(3, 21, [37, 30])
    wider = ((0, 0), (0, 0), (0, 11), (0, 0))
    roomy = jax.tree.map(lambda part: jnp.pad(part, wider, constant_values=9.0), streams)
    for keys, parallel in ((4, 1), (16, 2)):
        want, got = (attend(q, s, k_start, k_end, rows=16, keys=keys, parallel=parallel) for s in (streams, roomy))
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_keys_beyond_a_stream_are_none():
    q, streams, k_start, k_end = problem(0, 6, [37])
    want, got = (attend(q, streams, k_start, jnp.full_like(k_end, stop), keys=16)[0] for stop in (37, 45))
    np.testing.assert_array_equal(got, want)


def test_a_query_that_sees_nothing_gets_zeros():
    q, streams, k_start, k_end = problem(0, 6, [9, 4])
    k_end[:, 2:4] = k_start[:, 2:4]
    out, lse = attend(q, streams, k_start, k_end, rows=4)
    assert not np.asarray(out)[2:4].any() and np.isneginf(np.asarray(lse)[2:4]).all()
    assert np.isfinite(out).all()


def test_keys_outside_the_ranges_do_not_matter():
    q, streams, _, _ = problem(1, 5, [30])
    k_start, k_end = np.full((1, 5), 7, np.int32), np.full((1, 5), 19, np.int32)

    def poison(a):
        return a.at[:, :, :7].set(1e30).at[:, :, 19:].set(-1e30)

    spoiled = jax.tree.map(poison, streams)
    for tile in (4, 16):
        want, got = (attend(q, s, k_start, k_end, keys=tile)[0] for s in (streams, spoiled))
        np.testing.assert_array_equal(want, got)


def test_large_logits_do_not_overflow():
    q, streams, k_start, k_end = problem(2, 5, [30])
    k_start[:], k_end[:] = 0, 30
    out, lse = attend(q * 1e4, streams, k_start, k_end, keys=8)
    assert np.isfinite(out).all() and np.isfinite(lse).all()


def test_bfloat16_is_close_and_accumulates_in_fp32():
    q, streams, k_start, k_end = problem(3, 40, [2000], dtype=jnp.bfloat16, width=16)
    k_start[:], k_end[:] = 0, 2000
    got, lse = attend(q, streams, k_start, k_end)
    want, want_lse, _ = plainly(q, streams, k_start, k_end)
    assert got.dtype == jnp.bfloat16 and lse.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=0.01 * np.abs(want).max())
    np.testing.assert_allclose(lse, want_lse, atol=0.02)


@given(st.integers(0, 99))
@settings(max_examples=10)
def test_parts_merge_by_log_sum_exp(seed):
    q, streams, k_start, k_end = problem(seed, 7, [13, 22])
    whole, whole_lse = attend(q, streams, k_start, k_end)
    parts = [attend(q, (s,), k_start[i : i + 1], k_end[i : i + 1]) for i, s in enumerate(streams)]
    outs, lses = (np.stack([np.asarray(p[i]) for p in parts]) for i in (0, 1))
    merged_lse = np.logaddexp(*lses)
    shares = np.exp(lses - np.where(np.isinf(merged_lse), 0, merged_lse))
    np.testing.assert_allclose((outs * shares[..., None]).sum(axis=0), whole, atol=3e-6)
    np.testing.assert_allclose(merged_lse, whole_lse, atol=3e-6)


@pytest.mark.parametrize("key_tile", [4, 16, 512])
@given(st.integers(0, 99))
@settings(max_examples=10)
def test_key_mass_is_the_attention_on_the_stream(key_tile, seed):
    q, streams, k_start, k_end = problem(seed, 6, [19, 8])
    k_start[:] = 0
    _, _, weights = plainly(q, streams, k_start, k_end, layer=1)
    _, lse = attend(q, streams, k_start, k_end, layer=1)
    counts = np.random.default_rng(seed).random(np.shape(lse)).astype(np.float32)
    lse = np.where(np.isinf(lse), 0, lse)  # rows that see nothing have no share to give
    got = key_mass(q, streams[0], k_end[0], lse, counts, layer=1, key_tile=key_tile)
    np.testing.assert_allclose(got, np.einsum("nhs,nh->s", weights[0], counts), atol=3e-6)


def test_shapes_that_do_not_fit_are_refused():
    q, streams, k_start, k_end = problem(0, 4, [9])
    with pytest.raises(ValueError, match="cannot share"):
        attend(q[:, :3], streams, k_start, k_end)
    with pytest.raises(ValueError, match="must be"):
        attend(q, streams, k_start[:, :2], k_end[:, :2])


def test_a_stream_writes_rows_of_one_layer_only():
    _, (stream,), _, _ = problem(0, 1, [9])
    rows = jnp.ones((3, 2, 8))
    written = stream.write(rows, 2 * rows, 1, 4)
    assert (written.k[1, :, 4:7] == 1).all() and (written.v[1, :, 4:7] == 2).all()
    np.testing.assert_array_equal(written.k[0], stream.k[0])
    np.testing.assert_array_equal(written.k[1, :, :4], stream.k[1, :, :4])
    np.testing.assert_array_equal(written.k[1, :, 7:], stream.k[1, :, 7:])
