"""How programs are compiled for weights in 4 bits; what several devices compute is in api/test_devices.py."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from vxl2_jax import tensor_parallel


def leaf(dtype, platform):
    return SimpleNamespace(
        dtype=jnp.dtype(dtype), sharding=SimpleNamespace(device_set=[SimpleNamespace(platform=platform)])
    )


@pytest.mark.parametrize(
    ("dtype", "platform", "expected"),
    [
        ("int4", "gpu", True),
        ("int4", "cuda", True),
        ("int4", "tpu", False),
        ("int4", "cpu", False),
        ("int8", "gpu", False),
    ],
)
def test_gpus_compile_weights_in_4_bits_with_options_of_their_own(dtype, platform, expected):
    tree = {"norm": leaf("bfloat16", platform), "kernel": leaf(dtype, platform)}
    assert tensor_parallel._is_int4_on_gpu(tree) == expected


def test_the_options_are_known_to_the_compiler():
    @tensor_parallel.program(static=())
    def double(params):
        return params["x"] * 2

    params = {"x": jnp.arange(3)}
    assert double._jitted_int4(params).tolist() == double(params).tolist() == [0, 2, 4]
