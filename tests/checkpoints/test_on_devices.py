"""Checkpoints that are loaded straight to the shards of several devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


SLOW = (pytest.mark.slow, pytest.mark.timeout(1200))


@pytest.fixture(scope="module", params=["quick", pytest.param("all", marks=SLOW)])
def found(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    command = [sys.executable, Path(__file__).with_name("on_devices.py"), folder, request.param]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_sharded_parameters_equal_those_on_one_device_bit_for_bit(found):
    for name, case in found["cases"].items():
        assert case["equal"] and case["placed"], (name, case)
        assert case["weights"] == name.split()[-1].replace("small", "wide")
    assert found["odd"]


def test_nothing_large_is_on_one_device_as_a_whole(found):
    for name, case in found["cases"].items():
        # Wide is bfloat16; a 4-bit number has a byte of its own on a CPU.
        whole = found["largest"] / (2 if case["weights"] == "wide" else 4)
        assert 0 < case["most"] <= whole / 2, (name, case)
