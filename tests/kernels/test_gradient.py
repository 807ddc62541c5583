"""The gradient of range attention, against autodiff through all keys, masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import arrays, problem, strides

from pallas_kernels import attention
from pallas_kernels.attention import gradient


def masked_attention(q, streams, k_start, k_end):
    """Masked softmax over all keys of all streams, in fp32."""
    heads, (_, kv_heads, _, width) = q.shape[1], streams[0].k.shape

    def per_head(a):
        return jnp.repeat(a[0].astype(jnp.float32), heads // kv_heads, axis=0)

    k, v = (jnp.concatenate([per_head(s[i]) for s in streams], axis=1) for i in range(2))
    index = [np.arange(s.k.shape[2]) for s in streams]
    mask = np.concatenate(
        [(i >= a[:, None]) & (i < b[:, None]) for i, a, b in zip(index, k_start, k_end, strict=True)], axis=1
    )
    logits = jnp.where(mask, jnp.einsum("nhd,hsd->hns", q.astype(jnp.float32), k) * width**-0.5, -1e30)
    weights = jnp.where(mask, jax.nn.softmax(logits, axis=-1), 0)
    return jnp.einsum("hns,hsd->nhd", weights, v)


def gradients(attend):
    """A function of q and streams: the gradient of a random projection of `attend`."""

    def project(q, streams):
        d_out = jnp.asarray(np.random.default_rng(5).normal(size=q.shape), jnp.float32)
        return (attend(q, streams).astype(jnp.float32) * d_out).sum()

    return jax.jit(jax.grad(project, argnums=(0, 1)))


def assert_close(found, wanted, atol):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = max(float(jnp.abs(b).max(initial=0)), 1.0)
        np.testing.assert_allclose(np.asarray(a, np.float32) / scale, np.asarray(b, np.float32) / scale, atol=atol)


def check(q, streams, k_start, k_end, kernel=attention.REFERENCE, atol=2e-5):
    plan = attention.plan_attention(kernel, k_start, k_end, heads=q.shape[1], streams=streams)
    found = gradients(lambda q, s: gradient.attend(q, s, plan))(q, streams)
    assert_close(found, gradients(lambda q, s: masked_attention(q, s, k_start, k_end))(q, streams), atol)


@pytest.fixture
def small_tiles(monkeypatch):
    """Several query and key tiles in a small problem."""
    monkeypatch.setattr(gradient, "QUERY_TILE", 16)
    monkeypatch.setattr(gradient, "KEY_TILE", 16)


def test_random_ranges_of_several_tiles(small_tiles):
    """Three streams: a ragged one of several key tiles, an empty one, and one shorter than a tile."""
    check(*problem(3, 37, (70, 0, 5), layers=1))


def test_bfloat16_is_close_to_float32(small_tiles):
    check(*problem(6, 30, (40, 20), width=16, layers=1, dtype=jnp.bfloat16), atol=0.02)


def test_vmap():
    q, streams, k_start, k_end = problem(8, 20, (30, 10), layers=1)
    plan = attention.plan_attention(attention.REFERENCE, k_start, k_end, heads=q.shape[1], streams=streams)
    one = gradients(lambda q, s: gradient.attend(q, s, plan))
    both = jax.jit(jax.vmap(one, in_axes=(0, None)))(jnp.stack([q, 2 * q]), streams)
    assert_close(jax.tree.map(lambda a: a[1], both), one(2 * q, streams), 1e-5)


@pytest.mark.kernels
@pytest.mark.parametrize("lengths", [(70, 41), (1100, 3), (5, 0)])
def test_tiles_of_the_usual_size(lengths):
    check(*problem(3, 530, lengths, layers=1))


@pytest.mark.kernels
@settings(max_examples=4)
@given(strides(), st.integers(0, 99))
def test_strides_of_videos(stride, seed):
    lengths, k_start, k_end = stride
    q, streams = arrays(np.random.default_rng(seed), k_start.shape[1], lengths, 2, 2, 16, 1, jnp.float32)
    check(q, streams, k_start, k_end)


@pytest.mark.kernels
def test_the_forward_pass_of_a_kernel():
    kernel = attention.choose_kernel("tpu", dtype=jnp.float32, width=16).kernel
    check(*problem(4, 60, (130, 40), width=16, layers=1), kernel)
