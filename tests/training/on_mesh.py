"""Run in a process of its own: two steps on a mesh of four simulated devices and on one; prints their losses as JSON."""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import examples
import toys

from vxl2_jax import parallel
from vxl2_jax.training import step
from vxl2_jax.training.settings import MODULES, Data, Stage, TrainingSettings

STAGE = Stage("all", MODULES, rate=1e-2)


def losses(mesh):
    toy, settings = toys.model(), TrainingSettings("", Data(("x",)), (STAGE,))
    state, frozen, update = step.prepare(toy.config, toy.params, settings, STAGE, 2, mesh=mesh)
    found = []
    for _ in range(2):
        state, measures = update(state, frozen, examples.batch())
        found.append([float(measures[name]) for name in ("loss", "right", "grad_norm")])
    return found


if __name__ == "__main__":
    print(json.dumps([losses(mesh) for mesh in (None, parallel.make_mesh(toys.CONFIG, 2, 2))]))
