"""The loop of every training run: stages of steps, metrics, checkpoints to resume from, and the exported model.

OUT/metrics.jsonl   a line every few steps, see `metrics`
OUT/checkpoints/    and OUT/stages/, see `checkpoints`
OUT/model/          the result

A stage has settings (`settings.Stage`: how many steps, what is trained, how fast) and a `Task`: data and loss.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vxl2_jax import parallel
from vxl2_jax.errors import RequestError
from vxl2_jax.files import check_path, is_there
from vxl2_jax.storage import locking
from vxl2_jax.training import checkpoints, metrics, step
from vxl2_jax.training.checkpoints import Checkpoints
from vxl2_jax.training.metrics import Tally
from vxl2_jax.training.settings import RunSettings, Stage

Params = Any


class LoadedBatch(NamedTuple):
    """A batch ready for a step.

    batch: what the loss takes, a pytree of arrays; tokens: real tokens that it holds; skipped: samples of zero weight,
    because their video can no longer be read.
    """

    batch: Any
    tokens: int
    skipped: int


class Task(NamedTuple):
    """What a stage learns.

    loss: see `step.Loss`.
    open_data: from all parameters at the start of the stage to an endless iterator over `LoadedBatch`, with get_state
      and set_state; called when the stage starts or is resumed.
    evaluate: from all parameters to numbers that are added to the line of metrics at a checkpoint.
    """

    loss: step.Loss
    open_data: Callable[[Params], grain.DatasetIterator]
    evaluate: Callable[[Params], Mapping[str, float]] | None = None


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


@contextmanager
def open_metrics(out: str | Path) -> Generator[IO[str], None, None]:
    """Create OUT, and open and lock its metrics: no other process can write this run.

    Raises:
      RequestError: OUT cannot be written.
    """
    out = check_path(out, "out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{out}: cannot be created ({error.strerror}); choose another out") from error
    for name in ("checkpoints", "stages", "model"):
        if is_there(out / name) and not (out / name).is_dir():
            raise RequestError(f"{out / name}: not a folder; choose another out, or remove it")
    with locking.open_locked(_metrics_path(out)) as file:
        yield file


def _metrics_path(out: Path) -> Path:
    """Each process writes the same metrics to a file of its own; that of the first has the plain name."""
    return out / (f"metrics-{jax.process_index()}.jsonl" if jax.process_index() else "metrics.jsonl")


class Run:
    """A run of several stages, resumed from its latest checkpoint if it was interrupted.

    SIGINT and SIGTERM save a checkpoint after the current step, then raise KeyboardInterrupt; a second signal does not
    wait.
    """

    def __init__(
        self,
        settings: RunSettings,
        tasks: Sequence[Task],
        params: Params,
        file: IO[str],
        *,
        data: str,
        model: str,
        log: TrainingLog | None = None,
        mesh: Mesh | None = None,
        steps_per_epoch: int = 0,
        skipped: int = 0,
    ) -> None:
        """Prepare a run.

        Args:
          tasks: one per stage of the settings.
          params: the initial parameters {module: ...}.
          file: from `open_metrics`.
          data, model: fingerprints of the data and of the initial parameters. A checkpoint of a run with others, or with
            other settings, is refused.
          skipped: samples that were skipped before the first step.
        """
        self.settings, self.tasks, self.params, self.file, self.mesh = settings, tuple(tasks), params, file, mesh
        self.log, self.out = log or TrainingLog(), Path(settings.out)
        self.spans = _stage_spans(settings, steps_per_epoch)
        self.total = self.spans[-1].stop
        self.identity = checkpoints.identity(settings, data, model)
        self.tally = Tally(skipped=skipped)

    def finish(self, export: Callable[[Path, Params], None]) -> Path:
        """Run the remaining steps and export the model.

        Args:
          export: writes the model's files into an existing folder.

        Returns:
          The model's directory.

        Raises:
          RequestError: OUT cannot be used, or the loss is not finite.
          CheckpointError: a checkpoint is damaged.
        """
        settings, target = self.settings, self.out / "model"
        with Checkpoints(self.out, settings.checkpoint.keep, self.identity) as saved:
            note = saved.note or {"stage": 0, "tally": self.tally.as_data()}
            resumed_at, self.tally = saved.step or 0, Tally(**note["tally"])
            if target.exists():
                if resumed_at == self.total:
                    self.log.info(f"{target} is complete")
                    return target
                raise RequestError(f"{target}: holds a model that is not of this run; remove it, or choose another out")
            metrics.truncate(self.file, _metrics_path(self.out), resumed_at)
            if resumed_at:
                self.log.info(f"resuming after step {resumed_at} of {self.total}")
            # Attached once for the whole run: later stages continue to train the same updates.
            params = step.attach_lora(self.params, settings)
            self.params = None
            with _stop_requests() as stop_requested:
                for span, task in zip(self.spans, self.tasks, strict=True):
                    params = self._run_stage(span, task, params, saved, resumed_at, note["stage"], stop_requested)
            saved.wait()
            _export(target, params, export)
        return target

    def _run_stage(
        self,
        span: _StageSpan,
        task: Task,
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
        data = task.open_data(params)
        state, frozen, train_step = step.init_stage(
            params, self.settings, span.stage, span.stop - span.start, task.loss, self.mesh
        )
        if span.index == resumed_stage and resumed_at:
            state = saved.restore(state, data)

        def save(done: int, state: step.TrainState) -> None:
            saved.save(done, state, data, {"stage": span.index, "tally": self.tally.as_data()})

        def evaluate(state: step.TrainState) -> Mapping[str, float]:
            return task.evaluate(step.combine(state.params, frozen)) if task.evaluate else {}

        state = self._run_steps(
            span, max(resumed_at, span.start), state, frozen, train_step, data, save, evaluate, stop_requested
        )
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
        data: grain.DatasetIterator,
        save: Callable[[int, step.TrainState], None],
        evaluate: Callable[[step.TrainState], Mapping[str, float]],
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
            loaded = next(data)
            state, results = train_step(state, frozen, self._to_devices(loaded.batch))
            # The next step is dispatched before the results of the last one are waited for.
            finish_running()
            done, running = done + 1, (done + 1, results, loaded)
            stop = stop_requested.is_set()
            write_line = done % self.settings.log_every == 0 or done == span.stop
            is_due = done % self.settings.checkpoint.every == 0 or done == span.stop
            write_checkpoint = is_due or stop
            if write_line or write_checkpoint:
                finish_running()
            if write_line:
                line = self.tally.line(done, span.stage.name) | (dict(evaluate(state)) if is_due else {})
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

    def _to_devices(self, batch: Any) -> Any:
        if self.mesh is None:
            return batch
        sharding = parallel.batch_sharding(self.mesh)
        return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)


class _StageSpan(NamedTuple):
    """A stage and its steps, counted from the start of the run: start + 1 … stop."""

    index: int
    stage: Stage
    start: int
    stop: int


def _stage_spans(settings: RunSettings, steps_per_epoch: int) -> list[_StageSpan]:
    """The stages with their steps."""
    spans: list[_StageSpan] = []
    for index, stage in enumerate(settings.stages):
        start = spans[-1].stop if spans else 0
        steps = stage.steps or (stage.epochs or 0) * steps_per_epoch
        spans.append(_StageSpan(index, stage, start, start + steps))
    return spans


def _trained_shapes(params: Params, settings: RunSettings, stage: Stage) -> Params:
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


def _export(target: Path, params: Params, export: Callable[[Path, Params], None]) -> None:
    """Write the model, atomically."""
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    if jax.process_index():
        return
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        export(part, params)
        os.replace(part, target)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise checkpoints.cannot_be_written(target, error) from error
