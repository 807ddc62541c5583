"""`vxl2 train`: fine-tuning on conversations about videos, from settings to the exported model."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from pallas_kernels import attention as kernels
from vxl2_jax import hardware, kernel_trial, parallel
from vxl2_jax.checkpoints import fetch, huggingface
from vxl2_jax.errors import RequestError
from vxl2_jax.loading import load_runtime
from vxl2_jax.models import quantised
from vxl2_jax.runtime import Runtime
from vxl2_jax.training import conversations, loop, lora, pipeline
from vxl2_jax.training.loop import Run, Task, TrainingLog
from vxl2_jax.training.loss import stage_loss
from vxl2_jax.training.settings import TrainingSettings

Params = Any


def train(settings: TrainingSettings, log: TrainingLog | None = None) -> Path:
    """Train, and write the model with low-rank updates merged. Resumes, and stops on a signal, as `loop.Run` does.

    Returns:
      The model's directory.

    Raises:
      RequestError: settings, data, OUT or the backend that JAX is to use cannot be used.
      VideoError: see `pipeline.scan_dataset`.
      CheckpointError: the model or a checkpoint is damaged.
    """
    if not isinstance(settings, TrainingSettings):
        raise RequestError(f"settings must be TrainingSettings, not {type(settings).__name__}")
    hardware.device()
    log = log or TrainingLog()
    samples, invalid = conversations.read(settings.data.files, settings.data.videos)
    if invalid and settings.data.strict:
        raise RequestError(invalid[0])
    with loop.open_metrics(settings.out) as file:
        model, mesh = _load(settings)
        # By default GPUs and TPUs compute float32 products in TF32 or bfloat16.
        precision = "highest" if settings.compute_dtype == "float32" else "default"
        with jax.default_matmul_precision(precision):
            dataset = pipeline.scan_dataset(model, samples, settings, log.scanned)
            dataset = replace(dataset, skipped=(*invalid, *dataset.skipped))
            log.info(f"attention: {model.kernel_reason}")
            for reason in dataset.skipped:
                log.warning(f"skipped: {reason}")
            data = pipeline.batches(model, dataset, settings, jax.process_index(), jax.process_count())
            losses = (
                stage_loss(model.config, settings, stage, kernel=model.kernel, mesh=mesh) for stage in settings.stages
            )
            run = Run(
                settings,
                [Task(loss, lambda params: data) for loss in losses],
                model.params,
                file,
                data=dataset.digest,
                model=model.fingerprint,
                log=log,
                mesh=mesh,
                steps_per_epoch=pipeline.batches_per_epoch(dataset, settings),
                skipped=len(dataset.skipped),
            )
            model = replace(model, params=None)  # so that later stages do not keep the initial parameters

            def export(folder: Path, params: Params) -> None:
                # On the host: a device may have no room for the wide model and a copy of it.
                params = quantised.widen(hardware.to_host(params), settings.compute_dtype)
                merged = params if settings.lora is None else lora.merge(params)
                huggingface.save(folder, model.config, merged, settings.compute_dtype)
                (folder / "tokenizer.json").write_text(model.tokenizer.json, encoding="utf-8")

            return run.finish(export)


def _load(settings: TrainingSettings) -> tuple[Runtime, Mesh | None]:
    """The initial model, and the mesh (None for one device)."""
    dtype = settings.compute_dtype if settings.all_frozen else settings.params_dtype
    _, stored = fetch.describe(fetch.find(settings.model))
    if stored not in (quantised.WIDE, settings.weights):
        fix = "" if stored == quantised.W8A8 else f'set weights = "{stored}" and train low-rank updates, or '
        raise RequestError(
            f"{settings.model} has {stored} weights, which cannot be trained; {fix}set model to the checkpoint that it was "
            "converted from"
        )
    needs_mesh = settings.mesh.model > 1 or (settings.mesh.data or jax.device_count()) > 1
    # A model that is sharded may be too large for one device.
    with jax.default_device(jax.local_devices(backend="cpu")[0]) if needs_mesh else nullcontext():
        model = load_runtime(settings.model, dtype, weights=settings.weights, attention="reference", stacked=True)
    # Attention runs in compute_dtype, whatever the dtype of the parameters.
    kernel, reason, _ = kernels.choose_tested_kernel(
        dtype=settings.compute_dtype, width=model.config.language.head_width, test=kernel_trial.trial
    )
    kernel, gradient = kernels.tested_gradient(
        kernel, dtype=settings.compute_dtype, width=model.config.language.head_width, test=kernel_trial.trial
    )
    model = replace(model, kernel=kernel, kernel_reason=f"{reason}; its gradient: {gradient}")
    if not needs_mesh:
        return model, None
    mesh = parallel.make_mesh(model.config, settings.mesh.data, settings.mesh.model)
    ways = mesh.shape[parallel.DATA]
    if settings.batch % ways:
        raise RequestError(f"batch must be a multiple of {ways}, the mesh's data axis, not {settings.batch}")
    return model, mesh
