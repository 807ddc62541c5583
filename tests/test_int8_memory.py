"""Memories in int8: every reader of a cache takes them, and they say nearly what wide ones say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from pallas_kernels import attention
from pallas_kernels.attention import REFERENCE
from vxl2_jax import decode, relevance
from vxl2_jax.cache import views
from vxl2_jax.relevance import ScorerInputs, selection
from vxl2_jax.sampling import Sampling

IDS = np.asarray([[7, 3, 11, 30, 2], [1, 5, 9, 0, 0]], np.int32)
COUNT = np.asarray([5, 3], np.int32)


@pytest.fixture(scope="module")
def memories(toy):
    """The same video in float32 and in int8."""
    return [toys.remembered(toy, toys.video(), dtype=dtype) for dtype in (jnp.float32, jnp.int8)]


def relative_error(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))


def test_both_levels_hold_what_the_wide_ones_hold(memories):
    wide, small = memories
    assert {leaf.dtype for leaf in jax.tree.leaves((small.dense, small.sparse))} == {
        np.dtype("int8"),
        np.dtype("float32"),
    }
    lengths = (small.layout.visual_length, small.layout.global_length, small.sparse_length)
    for a, b, length in zip((*small.dense, small.sparse), (*wide.dense, wide.sparse), lengths, strict=True):
        for got, want in zip(a.dequantised(jnp.float32), b[:2], strict=True):
            assert relative_error(got[:, :, :length], want[:, :, :length]) < 0.02


def logits(toy, view, kernel):
    found = decode.generate(
        toy.params,
        toy.config,
        view,
        IDS,
        COUNT,
        Sampling(),
        jax.random.key(0),
        max_new=2,
        kernel=kernel,
        keep_logits=True,
    )
    return found.logits


def view_of(memory, kernel, chosen=([3], [2, 5])):
    dense = np.stack([selection.dense_chunks(7, np.asarray(one)) for one in chosen])
    return views.mixed_view(memory, 1, dense, kernel)


def test_answers_are_nearly_those_of_the_wide_memory(toy, memories):
    want, got = (logits(toy, view_of(memory, REFERENCE), REFERENCE) for memory in memories)
    assert 0 < relative_error(got, want) < 0.05


@pytest.mark.parametrize("name", ["tpu", pytest.param("ampere", marks=pytest.mark.slow)])
def test_kernels_read_what_the_reference_reads(toy, memories, name):
    kernel = attention.choose_kernel(name, dtype=jnp.float32, width=16, cache_dtype=jnp.int8).kernel
    small = memories[1]
    want = logits(toy, view_of(small, REFERENCE), REFERENCE)
    np.testing.assert_allclose(logits(toy, view_of(small, kernel), kernel), want, atol=2e-4)


@pytest.mark.parametrize("scorer", ["attention", "mass"])
def test_chunks_are_scored_nearly_as_in_the_wide_memory(toy, memories, scorer):
    want, got = (
        relevance.SCORERS[scorer].score(ScorerInputs(toy.params, toy.config, memory, IDS, COUNT, 2))
        for memory in memories
    )
    np.testing.assert_allclose(got, want, atol=0.02)


def test_a_kernel_that_cannot_read_int8_is_passed_over():
    class Device:
        platform, device_kind, compute_capability = "gpu", "NVIDIA H100 80GB HBM3", "9.0"

    common = {"dtype": jnp.bfloat16, "width": 128, "device": Device()}
    choice = attention.choose_kernel(cache_dtype=jnp.int8, **common)
    assert choice.kernel.name in ("ampere", "reference") and choice.fallback and "hopper" in choice.reason
    with pytest.raises(ValueError, match="int8"):
        attention.choose_kernel("hopper", cache_dtype=jnp.int8, **common)
