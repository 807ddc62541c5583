"""Linear layers: few rows take another way on accelerators, with the same result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vxl2_jax.models import few_rows, linear, quantised


@pytest.fixture(scope="module")
def layer():
    module, x = linear.Linear(24), jax.random.normal(jax.random.key(1), (1, 16))
    params = module.init(jax.random.key(0), x)["params"]
    return module, params | {"bias": jnp.arange(24.0)}, x


@pytest.mark.parametrize("shape", [(1, 16), (16,), (1, 1, 16), (3, 16)])
@pytest.mark.parametrize("is_quantised", [False, True])
def test_a_few_rows_gives_what_many_rows_give(layer, shape, is_quantised):
    module, params, _ = layer
    x = jax.random.normal(jax.random.key(2), shape)
    want = nn.Dense(24).apply({"params": params}, x)
    if is_quantised:
        params = params | {"kernel": quantised.quantise(params["kernel"], quantised.Scheme())}
        want = jnp.matmul(x, quantised.dequantise(params["kernel"], x.dtype)) + params["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x), want, rtol=1e-5, atol=1e-5)


def test_two_equal_rows_give_the_product_of_one(layer, monkeypatch):
    module, params, x = layer
    want = module.apply({"params": params}, x)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, *, tpu, cuda, default: tpu(x))
    np.testing.assert_allclose(module.apply({"params": params}, x), want, rtol=1e-6)


def rows_multiplied(layer, x, platform):
    """The rows of the product of matrices in a program; None if there is none."""
    module, params, _ = layer
    lowered = jax.jit(module.apply).trace({"params": params}, x).lower(lowering_platforms=(platform,)).as_text()
    found = [line for line in lowered.splitlines() if "dot_general" in line]
    assert len(found) < 2
    return int(found[0].split("tensor<")[1].split("x")[0]) if found else None


def test_accelerators_multiply_a_few_rows_twice_and_cpus_once(layer):
    x = layer[2]
    assert rows_multiplied(layer, x, "cuda") == rows_multiplied(layer, x, "tpu") == 2
    assert rows_multiplied(layer, x, "cpu") == 1
    assert all(rows_multiplied(layer, jnp.ones((3, 16)), platform) == 3 for platform in ("cpu", "cuda", "tpu"))


def test_gpus_multiply_a_few_rows_and_a_large_matrix_once(layer, monkeypatch):
    monkeypatch.setattr(few_rows, "_SMALL", 16 * 24)
    assert rows_multiplied(layer, layer[2], "cuda") == 1
    assert rows_multiplied(layer, layer[2], "tpu") == 2


INT8, INT4, W8A8 = quantised.Scheme(), quantised.Scheme(4, group=5), quantised.Scheme(activations=True)


def quantised_layer(layer, scheme):
    module, params, x = layer
    return module, params | {"kernel": quantised.quantise(params["kernel"], scheme)}, x


@pytest.mark.parametrize("shape", [(16,), (1, 16), (2, 1, 16), (7, 16)])
@pytest.mark.parametrize("scheme", [INT8, INT4], ids=["int8", "int4"])
def test_sums_over_integers_give_the_product(layer, scheme, shape):
    kernel, x = quantised_layer(layer, scheme)[1]["kernel"], jax.random.normal(jax.random.key(3), shape, jnp.float16)
    want = jnp.matmul(x.astype(jnp.float32), quantised.dequantise(kernel, jnp.float32))
    np.testing.assert_allclose(few_rows._by_sums(x, kernel), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(16,), (1, 16), (2, 3, 16)])
def test_products_of_groups_give_the_product(layer, shape):
    kernel = quantised.quantise(layer[1]["kernel"], quantised.Scheme(4, group=4))
    x = jax.random.normal(jax.random.key(4), shape)
    want = jnp.matmul(x, quantised.dequantise(kernel, jnp.float32))
    np.testing.assert_allclose(few_rows._by_groups(x, kernel), want, rtol=1e-5, atol=1e-5)


def test_tpus_multiply_few_rows_and_each_group_by_itself(layer):
    held = quantised_layer(layer, quantised.Scheme(4, group=4))
    assert rows_multiplied(held, jnp.ones((3, 16)), "tpu") == 4  # groups
    assert rows_multiplied(held, jnp.ones((few_rows._GROUPED + 1, 16)), "tpu") == few_rows._GROUPED + 1
    uneven = quantised_layer(layer, INT4)
    assert rows_multiplied(uneven, jnp.ones((3, 16)), "tpu") == 3


@pytest.mark.parametrize(
    ("scheme", "dtype", "rows", "expected"),
    [
        (INT8, jnp.float16, 1, None),  # as on cards older than Ampere
        (INT8, jnp.float16, 8, None),
        (INT8, jnp.float16, 9, 9),
        (INT8, jnp.bfloat16, 2, 2),
        (INT4, jnp.bfloat16, 1, None),
        (W8A8, jnp.float16, 1, 2),
    ],
)
def test_gpus_sum_few_rows_where_products_cannot_read_the_integers(layer, scheme, dtype, rows, expected):
    held = quantised_layer(layer, scheme)
    x = jnp.ones((rows, 16), dtype)
    assert rows_multiplied(held, x, "cuda") == expected
    assert rows_multiplied(held, x, "tpu") == (2 if rows == 1 else rows)
    assert rows_multiplied(held, x, "cpu") == rows
