"""The gradient of range attention, against autodiff through all keys, masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import arrays, problem, strides

from pallas_kernels import attention
from pallas_kernels.attention import gradient, tpu_gradient


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


@pytest.fixture
def tpu(monkeypatch):
    """The interpreted kernel for TPUs, with several tiles in a small problem."""
    monkeypatch.setattr(tpu_gradient, "ROWS", 128)
    monkeypatch.setattr(tpu_gradient, "KEYS", 128)
    return attention.choose_kernel("tpu", dtype=jnp.float32, width=16).kernel


def test_the_gradient_of_the_tpu_kernel(tpu):
    """Several tiles of rows and keys, of which some have no pair; a row that sees nothing; no stream fills its last tile."""
    q, streams, k_start, k_end = problem(4, 60, (300, 40), width=16, layers=1)
    k_end[0, :20] = np.minimum(k_end[0, :20], 90)
    k_start[:, 7], k_end[:, 7] = 5, 5
    assert gradient.refusal(tpu, dtype=q.dtype, width=16) is None
    check(q, streams, k_start, k_end, tpu)


@pytest.mark.kernels
def test_the_gradient_of_the_tpu_kernel_in_bfloat16(tpu):
    check(*problem(5, 90, (200, 150), width=64, layers=1, dtype=jnp.bfloat16), tpu, atol=0.02)


@pytest.mark.kernels
@settings(max_examples=4)
@given(strides(), st.integers(0, 99))
def test_gradients_of_the_tpu_kernel_over_strides_of_videos(stride, seed):
    lengths, k_start, k_end = stride
    kernel = attention.choose_kernel("tpu", dtype=jnp.float32, width=16).kernel
    q, streams = arrays(np.random.default_rng(seed), k_start.shape[1], lengths, 2, 2, 16, 1, jnp.float32)
    check(q, streams, k_start, k_end, kernel)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"dtype": jnp.float16}, "bfloat16"), ({"width": 144}, "128"), ({"rows": 10**7, "slots": 10**7}, "pairs")],
)
def test_what_the_tpu_kernel_cannot_differentiate_is_refused(change, reason):
    asked = {"dtype": jnp.bfloat16, "width": 128, "rows": 9, "slots": 9}
    kernel = attention.kernel_for("tpu", "TPU v5e")
    assert gradient.refusal(kernel, **asked) is None
    assert reason in gradient.refusal(kernel, **asked | change)


def test_kernels_without_a_gradient_say_so():
    why = gradient.refusal(attention.REFERENCE, dtype=jnp.float32, width=16)
    assert why == "the reference kernel has no gradient"


def test_a_gradient_that_fails_its_test_is_computed_in_plain_jax(tpu):
    found, how = attention.tested_gradient(tpu, dtype=jnp.float32, width=16, test=lambda *_, **asked: "wrong")
    assert not found.differentiates and "self-test" in how and "wrong" in how
    assert "self-test" in gradient.refusal(found, dtype=jnp.float32, width=16)
    check(*problem(4, 20, (30, 10), width=16, layers=1), found)


def test_the_self_test_compares_gradients(tpu, monkeypatch):
    assert attention.self_test(tpu, dtype=jnp.float32, width=16, gradient=True) is None
    right = tpu.backend.attend_gradients

    def wrong(*args, **options):
        dq, dk, dv = right(*args, **options)
        return dq, 1.1 * dk, dv

    monkeypatch.setattr(tpu.backend, "attend_gradients", wrong)
    jax.clear_caches()
    assert "relative error" in attention.self_test(tpu, dtype=jnp.float32, width=16, gradient=True)
