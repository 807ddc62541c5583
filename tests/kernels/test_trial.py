"""The trial of a kernel: passes what is right, and tells of what is wrong, broken or NaN."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import attention
from pallas_kernels.attention import dispatch
from pallas_kernels.attention.self_test import self_test


class Tampered:
    """The TPU backend with its results passed through a function."""

    def __init__(self, tamper):
        self.tamper, self.refusal = tamper, dispatch.BACKENDS["tpu"].refusal

    def attend_tiles(self, *args, **options):
        return self.tamper(*dispatch.tpu.attend_tiles(*args, **options))


def broken(out, lse):
    raise RuntimeError("no such instruction\nmore")


@pytest.fixture
def kernel():
    return attention.choose_kernel("tpu", dtype="float32", width=16).kernel


def test_a_right_kernel_passes(kernel):
    assert self_test(kernel, dtype="float32", width=16) is None


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda out, lse: (out.at[..., 0].multiply(1.1), lse), "differs from the reference"),
        (lambda out, lse: (jnp.full_like(out, jnp.nan), lse), "differs from the reference by nan"),
        (broken, "RuntimeError: no such instruction"),
    ],
    ids=["wrong", "NaN", "broken"],
)
def test_a_wrong_kernel_is_told(kernel, monkeypatch, tamper, said):
    monkeypatch.setitem(dispatch.BACKENDS, "tpu", Tampered(tamper))

    def clear():
        return (dispatch._jitted.cache_clear(), jax.clear_caches())

    clear()
    try:
        told = self_test(kernel, dtype="float32", width=16)
    finally:
        clear()
    assert said in told and "\n" not in told
