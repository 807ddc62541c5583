"""The cache in int8: what it holds, and what is lost."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import kv_cache


def rows(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_every_row_keeps_its_largest_number_and_errs_by_half_a_step_at_most():
    k = rows(3, 2, 5, 16) * jnp.asarray([1e-6, 1.0, 1e6])[:, None, None, None]
    integers, scale = kv_cache.quantise(k)
    assert integers.dtype == jnp.int8 and scale.shape == (3, 2, 5, 1)
    assert (np.abs(np.asarray(integers)).max(axis=-1) == 127).all()
    found = kv_cache.dequantise(integers, scale, jnp.float32)
    assert (np.abs(np.asarray(found - k)) <= np.asarray(scale) * 0.5001).all()


def test_rows_of_zeros_stay_zeros():
    integers, scale = kv_cache.quantise(jnp.zeros((2, 8)))
    assert not np.asarray(integers).any() and not np.asarray(scale).any()


def test_quantising_again_changes_no_integer():
    once = kv_cache.quantise(rows(50, 16))
    again = kv_cache.quantise(kv_cache.dequantise(*once, jnp.float32))
    np.testing.assert_array_equal(once[0], again[0])
    np.testing.assert_allclose(once[1], again[1], rtol=1e-6)


def test_rows_are_written_where_they_belong():
    for dtype in (jnp.float32, jnp.int8):
        cache, k, v = kv_cache.zeros(2, 3, 8, 4, dtype), rows(5, 3, 4), rows(5, 3, 4) + 1
        written = cache.write(k, v, 1, 2)
        want = kv_cache.KVCache.of_rows(k, v, dtype)
        jax.tree.map(
            lambda part, own: np.testing.assert_array_equal(part[1, :, 2:7], jnp.swapaxes(own, 0, 1)), written, want
        )
        assert all(not np.asarray(part[0]).any() for part in jax.tree.leaves(written))
        assert all(not np.asarray(part[1, :, :2]).any() for part in jax.tree.leaves(written))


def test_an_int8_cache_takes_little_more_than_half_the_bytes():
    cache = kv_cache.zeros(1, 2, 128, 128, jnp.int8)
    assert sum(part.nbytes for part in cache) == 2 * 128 * kv_cache.row_bytes(128, jnp.int8)
    assert kv_cache.row_bytes(128, jnp.int8) / kv_cache.row_bytes(128, jnp.bfloat16) < 0.52
