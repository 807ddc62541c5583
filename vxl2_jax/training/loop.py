"""A whole training run: stages of steps, metrics, checkpoints to resume from, and the exported model.

OUT/metrics.jsonl   a line every few steps, see `metrics`
OUT/checkpoints/    and OUT/stages/, see `checkpoints`
OUT/model/          the result: a checkpoint directory with low-rank updates merged
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from pallas_kernels import attention as kernels
from vxl2_jax import parallel
from vxl2_jax.api import load
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.errors import RequestError
from vxl2_jax.runtime import Runtime
from vxl2_jax.storage import locking
from vxl2_jax.training import checkpoints, conversations, lora, metrics, pipeline, step
from vxl2_jax.training.checkpoints import Checkpoints
from vxl2_jax.training.collate import Batch
from vxl2_jax.training.metrics import Tally
from vxl2_jax.training.pipeline import Dataset, LoadedBatch
from vxl2_jax.training.settings import Stage, TrainingSettings

Params = Any


@dataclass(frozen=True)
class TrainingLog:
    """Callbacks of a run.

    Attributes:
      info: called with a message now and then.
      warning: called with a message for each skipped sample.
      scanned: called before the first step with (videos scanned, total).
      step: called with (steps done, total).
      metrics: called with each line of metrics.
    """

    info: Callable[[str], Any] = lambda message: None
    warning: Callable[[str], Any] = lambda message: None
    scanned: Callable[[int, int], Any] = lambda done, total: None
    step: Callable[[int, int], Any] = lambda done, total: None
    metrics: Callable[[dict[str, Any]], Any] = lambda line: None


@dataclass(frozen=True)
class _StageSpan:
    """A stage and its steps, counted from the start of the run: start + 1 … stop."""

    index: int
    stage: Stage
    start: int
    stop: int


def train(settings: TrainingSettings, log: TrainingLog | None = None) -> Path:
    """Train, and write the model. A run that was interrupted is resumed from its latest checkpoint.

    SIGINT and SIGTERM save a checkpoint after the current step, then raise KeyboardInterrupt; a second signal does not
    wait.

    Returns:
      The model's directory.

    Raises:
      RequestError: settings, data or OUT cannot be used.
      VideoError: see `pipeline.scan_dataset`.
      CheckpointError: the model or a checkpoint is damaged.
    """
    if not isinstance(settings, TrainingSettings):
        raise RequestError(f"settings must be TrainingSettings, not {type(settings).__name__}")
    out, log = Path(settings.out), log or TrainingLog()
    samples, invalid = conversations.read(settings.data.files, settings.data.videos)
    if invalid and settings.data.strict:
        raise RequestError(invalid[0])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{out}: cannot be created ({error.strerror}); choose another out") from error
    # Each process writes the same metrics to a file of its own; that of the first has the plain name.
    path = out / (f"metrics-{jax.process_index()}.jsonl" if jax.process_index() else "metrics.jsonl")
    with locking.open_locked(path) as file:
        model, mesh = _load(settings)
        # By default GPUs and TPUs compute float32 products in TF32 or bfloat16.
        precision = "highest" if settings.compute_dtype == "float32" else "default"
        with jax.default_matmul_precision(precision):
            dataset = pipeline.scan_dataset(model, samples, settings, log.scanned)
            dataset = replace(dataset, skipped=(*invalid, *dataset.skipped))
            log.info(f"attention: {model.kernel_reason}")
            for reason in dataset.skipped:
                log.warning(f"skipped: {reason}")
            return _Run(settings, log, model, mesh, dataset, file, path).finish()


class _Run:
    """What the stages of a run share."""

    def __init__(
        self,
        settings: TrainingSettings,
        log: TrainingLog,
        model: Runtime,
        mesh: Mesh | None,
        dataset: Dataset,
        file: IO[str],
        path: Path,
    ) -> None:
        self.settings, self.log, self.mesh, self.file, self.path = settings, log, mesh, file, path
        self.out = Path(settings.out)
        self.spans = _stage_spans(settings, pipeline.batches_per_epoch(dataset, settings))
        self.total = self.spans[-1].stop
        self.identity = checkpoints.identity(settings, dataset.digest, model.fingerprint)
        self.params, self.model = model.params, replace(model, params=None)
        self.data = pipeline.batches(self.model, dataset, settings, jax.process_index(), jax.process_count())
        self.tally = Tally(skipped=len(dataset.skipped))

    def finish(self) -> Path:
        """Run the remaining steps and export the model."""
        settings, target = self.settings, self.out / "model"
        with Checkpoints(self.out, settings.checkpoint.keep, self.identity) as saved:
            note = saved.note or {"stage": 0, "tally": self.tally.as_data()}
            resumed_at, self.tally = saved.step or 0, Tally(**note["tally"])
            if target.exists():
                if resumed_at == self.total:
                    self.log.info(f"{target} is complete")
                    return target
                raise RequestError(f"{target}: holds a model that is not of this run; remove it, or choose another out")
            metrics.truncate(self.file, self.path, resumed_at)
            if resumed_at:
                self.log.info(f"resuming after step {resumed_at} of {self.total}")
            # Attached once for the whole run: later stages continue to train the same updates.
            params = step.attach_lora(self.params, settings)
            self.params = None
            with _stop_requests() as stop_requested:
                for span in self.spans:
                    params = self._run_stage(span, params, saved, resumed_at, note["stage"], stop_requested)
            saved.wait()
            _export(target, self.model, params, settings)
        return target

    def _run_stage(
        self,
        span: _StageSpan,
        params: Params,
        saved: Checkpoints,
        resumed_at: int,
        resumed_stage: int,
        stop_requested: threading.Event,
    ) -> Params:
        """The parameters after a stage, in a run that resumed at a step of stage `resumed_stage`."""
        if span.index < resumed_stage:
            trained = saved.load_stage(span.index, _trained_shapes(params, self.settings, span.stage))
            return step.combine(trained, params)
        state, frozen, train_step = step.init_stage(
            self.model.config,
            params,
            self.settings,
            span.stage,
            span.stop - span.start,
            kernel=self.model.kernel,
            mesh=self.mesh,
        )
        if span.index == resumed_stage and resumed_at:
            state = saved.restore(state, self.data)

        def save(done: int, state: step.TrainState) -> None:
            saved.save(done, state, self.data, {"stage": span.index, "tally": self.tally.as_data()})

        state = self._run_steps(span, max(resumed_at, span.start), state, frozen, train_step, save, stop_requested)
        if span.index + 1 < len(self.spans):
            saved.save_stage(span.index, state.params)
        return step.combine(state.params, params)

    def _run_steps(
        self,
        span: _StageSpan,
        done: int,
        state: step.TrainState,
        frozen: Params,
        train_step: step.TrainStep,
        save: Callable[[int, step.TrainState], None],
        stop_requested: threading.Event,
    ) -> step.TrainState:
        """The state after the remaining steps of a stage; `done` steps of the run are done."""
        running: tuple[int, Any, LoadedBatch] | None = None
        clock = time.perf_counter()

        def finish_running() -> None:
            """Wait for the running step and record its metrics."""
            nonlocal running, clock
            if running:
                number, results, loaded = running
                results, before, clock = jax.device_get(results), clock, time.perf_counter()
                self._check_finite(number, span.stage, results)
                self.tally.add(results, loaded.tokens, loaded.skipped, clock - before)
                self.log.step(number, self.total)
                running = None

        while done < span.stop:
            loaded = next(self.data)
            state, results = train_step(state, frozen, self._to_devices(loaded.batch))
            # The next step is dispatched before the results of the last one are waited for.
            finish_running()
            done, running = done + 1, (done + 1, results, loaded)
            stop = stop_requested.is_set()
            write_line = done % self.settings.log_every == 0 or done == span.stop
            write_checkpoint = done % self.settings.checkpoint.every == 0 or done == span.stop or stop
            if write_line or write_checkpoint:
                finish_running()
            if write_line:
                line = self.tally.line(done, span.stage.name)
                metrics.append(self.file, line)
                self.log.metrics(line)
            if write_checkpoint:
                save(done, state)
            if stop:
                raise KeyboardInterrupt
        return state

    def _check_finite(self, number: int, stage: Stage, results: dict[str, Any]) -> None:
        loss, norm = results["loss"], results["grad_norm"]
        if not (np.isfinite(loss) and np.isfinite(norm)):
            raise RequestError(
                f"{self.out}: at step {number} the loss is {loss} and the gradient norm {norm}; start again in another "
                f"folder with a lower learning_rate for stage {stage.name}"
            )

    def _to_devices(self, batch: Batch) -> Batch:
        if self.mesh is None:
            return batch
        sharding = parallel.batch_sharding(self.mesh)
        return Batch(*(jax.make_array_from_process_local_data(sharding, array) for array in batch))


def _stage_spans(settings: TrainingSettings, steps_per_epoch: int) -> list[_StageSpan]:
    """The stages with their steps."""
    spans: list[_StageSpan] = []
    for index, stage in enumerate(settings.stages):
        start = spans[-1].stop if spans else 0
        steps = stage.steps or (stage.epochs or 0) * steps_per_epoch
        spans.append(_StageSpan(index, stage, start, start + steps))
    return spans


def _load(settings: TrainingSettings) -> tuple[Runtime, Mesh | None]:
    """The initial model, and the mesh (None for one device)."""
    # With LoRA of the language model alone all loaded parameters are frozen.
    all_frozen = settings.lora is not None and all(set(stage.train) == {"language"} for stage in settings.stages)
    dtype = settings.compute_dtype if all_frozen else settings.params_dtype
    needs_mesh = settings.mesh.model > 1 or (settings.mesh.data or jax.device_count()) > 1
    # A model that is sharded may be too large for one device.
    with jax.default_device(jax.local_devices(backend="cpu")[0]) if needs_mesh else nullcontext():
        model = load(settings.model, dtype, attention="reference")
    # Attention runs in compute_dtype, whatever the dtype of the parameters.
    kernel, reason = kernels.choose_tested_kernel(dtype=settings.compute_dtype, width=model.config.language.head_width)
    model = replace(model, kernel=kernel, kernel_reason=reason)
    if not needs_mesh:
        return model, None
    mesh = parallel.make_mesh(model.config, settings.mesh.data, settings.mesh.model)
    ways = mesh.shape[parallel.DATA]
    if settings.batch % ways:
        raise RequestError(f"batch must be a multiple of {ways}, the mesh's data axis, not {settings.batch}")
    return model, mesh


def _trained_shapes(params: Params, settings: TrainingSettings, stage: Stage) -> Params:
    """The trained parameters of a stage, as shapes."""
    shapes = jax.eval_shape(lambda tree: tree, step.partition(params, settings, stage)[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(settings.params_dtype)), shapes)


@contextmanager
def _stop_requests() -> Generator[threading.Event, None, None]:
    """An event that is set by the first SIGINT or SIGTERM; the second has its usual effect."""
    requested = threading.Event()
    handlers: dict[int, Any] = {}

    def request(number: int, _: object) -> None:
        requested.set()
        signal.signal(number, handlers[number])

    if threading.current_thread() is threading.main_thread():  # only this thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, request)
    try:
        yield requested
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _export(target: Path, model: Runtime, params: Params, settings: TrainingSettings) -> None:
    """Write the model as a Hugging Face checkpoint directory, atomically."""
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    if settings.lora is not None:
        params = lora.merge(params)
    if jax.process_index():
        return
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        huggingface.save(part, model.config, params, settings.compute_dtype)
        (part / "tokenizer.json").write_text(model.tokenizer.json, encoding="utf-8")
        os.replace(part, target)
    except OSError as error:
        raise RequestError(f"{target}: cannot be written ({error}); free some space and start again") from error
