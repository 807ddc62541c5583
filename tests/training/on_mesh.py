"""Two steps on a mesh of four simulated devices and on one, in a separate process; prints their metrics as JSON."""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import examples
import toys

from vxl2_jax import parallel
from vxl2_jax.training import step
from vxl2_jax.training.loss import stage_loss
from vxl2_jax.training.settings import MODULES, DataSettings, Stage, TrainingSettings

STAGE = Stage("all", MODULES, learning_rate=1e-2, steps=2)


def losses(mesh):
    toy, settings = toys.model(examples.CONFIG), TrainingSettings("", (STAGE,), data=DataSettings(("x",)))
    state, frozen, train_step = step.init_stage(
        toy.params, settings, STAGE, 2, stage_loss(toy.config, settings, STAGE, mesh=mesh), mesh
    )
    results = []
    for _ in range(2):
        state, metrics = train_step(state, frozen, examples.batch())
        results.append([float(metrics[name]) for name in ("loss", "accuracy", "grad_norm")])
    return results


if __name__ == "__main__":
    print(json.dumps([losses(mesh) for mesh in (None, parallel.make_mesh(examples.CONFIG, 2, 2))]))
