"""Meshes: the same steps on several devices, and what cannot be split."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toys
from jax.sharding import PartitionSpec as P

from vxl2_jax import parallel
from vxl2_jax.errors import RequestError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_steps_on_four_simulated_devices_equal_steps_on_one():
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "training")))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("on_mesh.py")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone, spread = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(spread, alone, rtol=2e-4)


def test_parameters_and_optimiser_state_are_sharded_alike():
    mesh = parallel.make_mesh(toys.CONFIG, 1, 1)
    kernel = jax.ShapeDtypeStruct((3, 32, 64), "float32")
    tree = {"language": {"layers": {"query": {"kernel": kernel}, "down": {"kernel": kernel}}, "embed": kernel}}
    for found in (
        parallel.shardings(mesh, tree),
        parallel.shardings(mesh, [tree, jax.ShapeDtypeStruct((), "int32")])[0],
    ):
        layers = found["language"]["layers"]
        assert layers["query"]["kernel"].spec == P(None, "data", "model")
        assert layers["down"]["kernel"].spec == P(None, "model", "data")


def test_a_mesh_that_does_not_divide_is_refused():
    with pytest.raises(RequestError, match="needs 6 devices"):
        parallel.make_mesh(toys.CONFIG, 3, 2, devices=[0, 1])
    with pytest.raises(RequestError, match="cannot be split 3 ways"):
        parallel.make_mesh(toys.CONFIG, 1, 3, devices=[0, 1, 2])
