"""Compile the training step of the real-size model for machines that are not here; print one JSON line per program.

    python tests/targets/compile_training.py v5e:16x16 4
    python tests/targets/compile_training.py v5e:2x2 4 "low-rank updates, int8"
    python tests/targets/compile_training.py l4 1 "low-rank updates, int8"

The second argument is the size of the mesh's model axis, over which heads and MLP channels are split; the data axis
holds one example per device. Programs, all of them unless a third argument names one: "low-rank updates" of the
language half, the same over weights in int8, and "everything" trainable (parameters and moments fp32). Lines have the memory that XLA plans per device.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from machines import GPUS, topology  # first: it sets what JAX reads when it is imported

from pallas_kernels import attention
from vxl2_jax import parallel
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.config import video_xl_2
from vxl2_jax.training import step
from vxl2_jax.training.collate import Batch
from vxl2_jax.training.loss import stage_loss
from vxl2_jax.training.settings import MODULES, DataSettings, LoraSettings, Stage, TrainingSettings

CONFIG = video_xl_2()
GROUPS, ROWS = 64, 768  # 256 frames; their timestamps, a question and its answer


def programs() -> dict[str, TrainingSettings]:
    """Training settings by program name."""
    common = {"out": "", "data": DataSettings(("x",)), "compute_dtype": "bfloat16"}
    updates = {"stages": (Stage("language", ("language",), 1e-4, steps=100),), "lora": LoraSettings(rank=16)}
    return {
        "low-rank updates": TrainingSettings(**updates, **common),
        "low-rank updates, int8": TrainingSettings(**updates, **common, weights="int8"),
        "everything": TrainingSettings(stages=(Stage("all", MODULES, 1e-5, steps=100),), **common),
    }


def lowered(settings: TrainingSettings, mesh: Any) -> Any:
    """The step, lowered for a mesh with one example per device of its data axis."""
    stage, count = settings.stages[0], mesh.shape[parallel.DATA]
    kernel = attention.choose_kernel(
        dtype=jnp.bfloat16, width=CONFIG.language.head_width, device=mesh.devices.flat[0]
    ).kernel
    dtype = settings.compute_dtype if settings.all_frozen else settings.params_dtype
    params = huggingface.abstract_params(CONFIG, dtype, settings.weights)
    whole = jax.eval_shape(lambda p: step.attach_lora(p, settings), params)
    loss = stage_loss(CONFIG, settings, stage, kernel=kernel, mesh=mesh)
    state, frozen = jax.eval_shape(lambda p: step.init_stage(p, settings, stage, 100, loss)[:2], whole)

    def placed(tree):
        return jax.tree.map(
            lambda a, at: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=at), tree, parallel.shardings(mesh, tree)
        )

    side, rows = CONFIG.vision.image_size, GROUPS * CONFIG.visual_tokens + ROWS
    shapes = Batch(
        frames=(4 * GROUPS, side, side, 3),
        ids=(ROWS,),
        targets=(ROWS,),
        positions=(rows,),
        k_start=(2, rows),
        k_end=(2, rows),
    )
    dtype = {"frames": jnp.uint8}
    batch = Batch(
        **{
            name: jax.ShapeDtypeStruct(
                (count, *shape), dtype.get(name, jnp.int32), sharding=parallel.batch_sharding(mesh)
            )
            for name, shape in shapes._asdict().items()
        }
    )
    update = step.make_train_step(settings, stage, 100, loss, mesh)
    return update.lower(placed(state), placed(frozen), batch)


def main(name: str, model: str, *wanted: str) -> None:
    """Compile the programs and print the results."""
    if name in GPUS:
        devices = topology(name).devices
    else:
        devices = topologies.get_topology_desc(topology_name=name, platform="tpu").devices
    mesh = parallel.make_mesh(CONFIG, model=int(model), devices=devices)
    for program, settings in programs().items():
        if wanted and program not in wanted:
            continue
        start = time.monotonic()
        with jax.set_mesh(mesh), jax.default_device(mesh.devices.flat[0]):
            plan = lowered(settings, mesh).compile().memory_analysis()

        def gb(count):
            return round(count / 1e9, 3)

        peak = (
            plan.argument_size_in_bytes + plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        )
        print(
            json.dumps(
                {
                    "machine": name,
                    "program": f"training, {program}",
                    "mesh": dict(mesh.shape),
                    "frames": 4 * GROUPS,
                    "arguments_gb": gb(plan.argument_size_in_bytes),
                    "temporary_gb": gb(plan.temp_size_in_bytes),
                    "peak_gb": gb(peak),
                    "seconds": round(time.monotonic() - start, 1),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
