"""Linear layers: a single row takes another way on accelerators, with the same result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vxl2_jax.models import linear, quantised, single_row


@pytest.fixture(scope="module")
def layer():
    module, x = linear.Linear(24), jax.random.normal(jax.random.key(1), (1, 16))
    params = module.init(jax.random.key(0), x)["params"]
    return module, params | {"bias": jnp.arange(24.0)}, x


@pytest.mark.parametrize("shape", [(1, 16), (16,), (1, 1, 16), (3, 16)])
@pytest.mark.parametrize("is_quantised", [False, True])
def test_a_single_row_gives_what_many_rows_give(layer, shape, is_quantised):
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
    module, params, _ = layer
    lowered = jax.jit(module.apply).trace({"params": params}, x).lower(lowering_platforms=(platform,)).as_text()
    (line,) = [line for line in lowered.splitlines() if "dot_general" in line]
    return int(line.split("tensor<")[1].split("x")[0])


def test_accelerators_multiply_a_single_row_twice_and_cpus_once(layer):
    x = layer[2]
    assert rows_multiplied(layer, x, "cuda") == rows_multiplied(layer, x, "tpu") == 2
    assert rows_multiplied(layer, x, "cpu") == 1
    assert all(rows_multiplied(layer, jnp.ones((3, 16)), platform) == 3 for platform in ("cpu", "cuda", "tpu"))


def test_gpus_multiply_a_single_row_and_a_large_matrix_once(layer, monkeypatch):
    monkeypatch.setattr(single_row, "_SMALL", 16 * 24)
    assert rows_multiplied(layer, layer[2], "cuda") == 1
    assert rows_multiplied(layer, layer[2], "tpu") == 2
