"""What suits which machine."""

from types import SimpleNamespace

import pytest

from vxl2_jax import machine


def gpu(capability: str):
    return SimpleNamespace(platform="gpu", compute_capability=capability)


@pytest.mark.parametrize(("device", "dtype", "sizes"), [
    (SimpleNamespace(platform="cpu"), "float32", machine.SMALL),
    (gpu("7.5"), "float16", machine.SMALL),
    (gpu("8.0"), "bfloat16", machine.LARGE),
    (gpu("9.0"), "bfloat16", machine.LARGE),
    (SimpleNamespace(platform="tpu"), "bfloat16", machine.LARGE),
])
def test_dtype_and_sizes(device, dtype, sizes):
    assert machine.default_dtype(device) == dtype and machine.sizes_for(device) == sizes


@pytest.mark.parametrize("sizes", [machine.SMALL, machine.LARGE])
def test_a_stride_is_whole_vision_batches(sizes):
    assert sizes.stride % sizes.vision_groups == 0
