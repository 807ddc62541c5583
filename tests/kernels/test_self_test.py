"""The self-test passes a correct kernel, and reports one that is wrong, broken or gives NaN."""

import dataclasses
import importlib

import jax.numpy as jnp
import pytest
from problems import backend_like_the_reference

from pallas_kernels import attention
from pallas_kernels.attention import reference
from pallas_kernels.attention.kernel import BACKENDS

self_test = importlib.import_module("pallas_kernels.attention.self_test")


def fail(out):
    raise RuntimeError("no such instruction\nmore")


CASES = {
    "correct": (lambda out, schedule: out, None),
    "wrong": (lambda out, schedule: out.at[..., 0].multiply(1.1), "relative error"),
    "NaN": (lambda out, schedule: jnp.full_like(out, jnp.nan), "nan"),
    "broken": (lambda out, schedule: fail(out), "RuntimeError: no such instruction"),
    "wrong where programs have several items": (
        lambda out, schedule: out if schedule.first_item is None else out.at[:, 0].set(0),
        "relative error",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_kernels_are_reported_in_one_line(name, monkeypatch):
    change, problem = CASES[name]

    def attend_tiles(q, streams, layer, schedule, **options):
        out, lse = reference.attend_tiles(q, streams, layer, schedule, **options)
        return change(out, schedule), lse

    monkeypatch.setitem(BACKENDS, name, backend_like_the_reference(name, attend_tiles))
    for constant, small in {"QUERIES": (9,), "KEYS": ((40, 7), (9, 8, 7, 6)), "FRAMES": (1, 4, 1, 8)}.items():
        monkeypatch.setattr(self_test, constant, small)
    kernel = dataclasses.replace(attention.REFERENCE, name=name, persistent=True)
    found = self_test.self_test(kernel, dtype="float32", width=16)
    assert found is None if problem is None else problem in found and "\n" not in found


@pytest.mark.kernels
def test_the_tpu_kernel_passes():
    kernel = attention.choose_kernel("tpu", dtype="float32", width=16).kernel
    assert self_test.self_test(kernel, dtype="float32", width=16) is None
