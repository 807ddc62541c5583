"""The gradient of range attention against autodiff through all keys, masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import arrays, problem, strides

from pallas_kernels import attention
from pallas_kernels.attention import gradient


def plainly(q, streams, k_start, k_end):
    """Masked softmax over all keys of all streams, in fp32."""
    heads, (_, kv_heads, _, width) = q.shape[1], streams[0].k.shape

    def spread(a):
        return jnp.repeat(a[0].astype(jnp.float32), heads // kv_heads, axis=0)

    k, v = (jnp.concatenate([spread(s[i]) for s in streams], axis=1) for i in range(2))
    index = [np.arange(s.k.shape[2]) for s in streams]
    seen = np.concatenate(
        [(i >= a[:, None]) & (i < b[:, None]) for i, a, b in zip(index, k_start, k_end, strict=False)], axis=1
    )
    logits = jnp.where(seen, jnp.einsum("nhd,hsd->hns", q.astype(jnp.float32), k) * width**-0.5, -1e30)
    weights = jnp.where(seen, jax.nn.softmax(logits, axis=-1), 0)
    return jnp.einsum("hns,hsd->nhd", weights, v)


def gradients(attend, q, streams):
    direction = jnp.asarray(np.random.default_rng(5).normal(size=q.shape), jnp.float32)
    return jax.grad(lambda q, s: (attend(q, s).astype(jnp.float32) * direction).sum(), argnums=(0, 1))(q, streams)


def assert_alike(found, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = max(float(jnp.abs(b).max(initial=0)), 1.0)
        np.testing.assert_allclose(np.asarray(a, np.float32) / scale, np.asarray(b, np.float32) / scale, atol=tolerance)


def compare(q, streams, k_start, k_end, kernel=attention.REFERENCE, tolerance=2e-5):
    reads = attention.plan_attention(kernel, k_start, k_end, heads=q.shape[1], streams=streams)
    ours = jax.jit(lambda q, s: gradients(lambda q, s: gradient.attend(q, s, reads), q, s))(q, streams)
    assert_alike(ours, gradients(lambda q, s: plainly(q, s, k_start, k_end), q, streams), tolerance)


@pytest.mark.parametrize("lengths", [(70, 41), (1100, 3), (5, 0)])
def test_random_ranges_of_several_tiles(lengths):
    compare(*problem(3, 530, lengths, layers=1))


@settings(max_examples=4, deadline=None)
@given(strides(), st.integers(0, 99))
def test_strides_of_videos(stride, seed):
    lengths, k_start, k_end = stride
    q, streams = arrays(np.random.default_rng(seed), k_start.shape[1], lengths, 2, 2, 16, 1, jnp.float32)
    compare(q, streams, k_start, k_end)


def test_a_kernels_forward_pass_serves_the_same_backward_pass():
    q, streams, k_start, k_end = problem(4, 60, (130, 40), width=16, layers=1)
    kernel = attention.choose_kernel("tpu", dtype=jnp.float32, width=16).kernel
    compare(q, streams, k_start, k_end, kernel)


def test_bfloat16_stays_near_float32():
    q, streams, k_start, k_end = problem(6, 90, (130, 40), width=16, layers=1, dtype=jnp.bfloat16)
    compare(q, streams, k_start, k_end, tolerance=0.02)


def test_examples_may_be_mapped_over():
    q, streams, k_start, k_end = problem(8, 40, (60, 20), layers=1)
    reads = attention.plan_attention(attention.REFERENCE, k_start, k_end, heads=q.shape[1], streams=streams)

    def one(q):
        return gradients(lambda q, s: gradient.attend(q, s, reads), q, streams)

    both = jax.vmap(one)(jnp.stack([q, 2 * q]))
    assert_alike(jax.tree.map(lambda a: a[1], both), one(2 * q), 1e-5)
