"""Log-sum-exp of queries over many short key ranges, each moved by an angle of its own: the TPU kernel, interpreted."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from problems import in_int8

from pallas_kernels.attention import KVCache, tpu
from vxl2_jax.models.rope import rotate, rotation

interpreter = importlib.import_module("jax._src.pallas.mosaic.interpret.interpret_pallas_call")


def problem(ranges, slots, rows, heads=2, width=16, dtype=jnp.float32, layers=2):
    rng = np.random.default_rng(0)
    k, v = (jnp.asarray(rng.normal(size=(layers, heads, slots, width)), dtype) for _ in "kv")
    q = jnp.asarray(rng.normal(size=(heads, rows, width)) * width**-0.5, dtype)
    start, end = np.asarray(ranges, np.int32).T
    return q, KVCache(k, v), start, end, rotation(1000 - 7 * end, width, 1e4)


def expected(q, cache, start, end, angles, layer=1):
    k = cache.dequantised(q.dtype)[0][layer]
    found = []
    for first, last, cos, sin in zip(start, end, *angles, strict=True):
        moved = np.asarray(rotate(k[:, first:last], cos, sin), np.float64)
        logits = np.einsum("krd,ksd->krs", np.asarray(q, np.float64), moved)
        with np.errstate(divide="ignore"):
            found.append(np.log(np.exp(logits).sum(axis=-1)))
    return np.stack(found)


def run(q, cache, start, end, angles, width, **options):
    options = {"interpret": True} | options
    return tpu.log_sum_exp(
        q, cache, jnp.int32(1), jnp.asarray(start), jnp.asarray(end), *angles, width=width, **options
    )


RANGES = [
    (0, 5),
    (5, 30),
    (30, 30),
    (30, 61),
    (61, 62),
    (100, 131),
    (131, 163),
    (180, 200),
    (0, 0),
    (199, 200),
    (7, 39),
]
"""More than a step takes; up to the last slot; two of them empty."""


@pytest.mark.parametrize("rows", [5, 130, pytest.param(600, marks=pytest.mark.slow)])
def test_every_range_is_summed_with_its_own_angle(rows):
    arguments = problem(RANGES, 200, rows)
    got = run(*arguments, width=32)
    assert got.dtype == jnp.float32 and np.isneginf(got[2]).all() and np.isneginf(got[8]).all()
    np.testing.assert_allclose(got, expected(*arguments), atol=3e-6)


@pytest.mark.parametrize(("heads", "slots"), [(1, 208), (2, 40)], ids=["one head", "fewer slots than a tile"])
def test_bfloat16(heads, slots):
    ranges = [(first, last) for first, last in RANGES if last <= slots]
    arguments = problem(ranges, slots, 9, heads, dtype=jnp.bfloat16)
    np.testing.assert_allclose(run(*arguments, width=32), expected(*arguments), atol=2e-2)


def test_keys_in_int8_are_scaled():
    q, cache, *rest = problem(RANGES, 256, 9)
    (cache,) = in_int8([cache])
    cache = cache._replace(k_scale=cache.k_scale * jnp.asarray(np.linspace(0.5, 2, 256), jnp.float32)[:, None])
    np.testing.assert_allclose(run(q, cache, *rest, width=32), expected(q, cache, *rest), atol=3e-5)


@pytest.mark.parametrize("cores", [1, 2])
def test_copies_do_not_race(cores):
    """In this interpreter uninitialized memory is NaN, and reads past the end of an array raise."""
    arguments = problem(RANGES, 208, 9, 4, dtype=jnp.bfloat16)
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=cores)
    got = run(*arguments, width=32, interpret=params)
    np.testing.assert_allclose(got, expected(*arguments), atol=2e-2)
    assert interpreter.races is not None and not interpreter.races.races_found


def test_layers_may_be_traced():
    q, cache, start, end, angles = problem(RANGES, 208, 9)

    @jax.jit
    def all_layers(q, cache):
        def one(_, layer):
            return None, tpu.log_sum_exp(q, cache, layer, start, end, *angles, width=32, interpret=True)

        return jax.lax.scan(one, None, jnp.arange(2))[1]

    got = all_layers(q, cache)
    for layer in range(2):
        np.testing.assert_allclose(got[layer], expected(q, cache, start, end, angles, layer), atol=3e-6)
