"""A whole run: stages of steps, their figures, checkpoints to go on from, and the model at the end.

OUT/metrics.jsonl   a line every few steps, see `metrics`
OUT/checkpoints/    and OUT/stages/, see `checkpoints`
OUT/model/          the result: a checkpoint directory, low-rank updates merged
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from pallas_kernels import attention as kernels
from vxl2_jax import parallel
from vxl2_jax.api import Model, load
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.errors import RequestError
from vxl2_jax.storage import locking
from vxl2_jax.training import checkpoints, conversations, lora, metrics, pipeline, step
from vxl2_jax.training.checkpoints import Checkpoints
from vxl2_jax.training.collate import Batch
from vxl2_jax.training.conversations import Conversation
from vxl2_jax.training.metrics import Tally
from vxl2_jax.training.pipeline import Loaded
from vxl2_jax.training.settings import Stage, TrainingSettings

Params = Any


@dataclass(frozen=True)
class TrainingLog:
    """Who is told what. say: a sentence now and then; warn: one for every example that is left out; looked: videos
    looked at, of how many, before the first step; step: steps done, in all; line: a line of metrics."""

    say: Callable[[str], None] = lambda text: None
    warn: Callable[[str], None] = lambda text: None
    looked: Callable[[int, int], None] = lambda done, total: None
    step: Callable[[int, int], None] = lambda done, total: None
    line: Callable[[dict[str, Any]], None] = lambda line: None


@dataclass(frozen=True)
class _Part:
    """A stage with its number and the steps of the run that it takes: begin + 1 … end."""

    number: int
    stage: Stage
    begin: int
    end: int


def train(settings: TrainingSettings, report: TrainingLog | None = None) -> Path:
    """Train as the settings say and write the model; returns its directory. A run that OUT holds goes on.

    SIGINT and SIGTERM save a checkpoint after the step in hand and then raise KeyboardInterrupt; a second one does not
    wait. Raises RequestError for settings, data or an OUT that cannot be used, VideoError for videos (see
    `pipeline.scan_dataset`), CheckpointError for a model or checkpoint that is damaged.
    """
    out = Path(settings.out)
    rows = conversations.read(settings.data.files, settings.data.videos)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{out}: cannot be made ({error.strerror}); choose another place") from error
    report, path = report or TrainingLog(), out / f"metrics{_suffix()}.jsonl"
    with locking.opened(path) as file:
        model, mesh = _load(settings)
        # fp32 means fp32: without it GPUs and TPUs multiply in tf32 or bf16.
        precision = "highest" if settings.compute_dtype == "float32" else "default"
        with jax.default_matmul_precision(precision):
            return _Run(settings, report, model, mesh, rows, file, path).finish()


class _Run:
    """What the stages of a run share."""

    def __init__(
        self,
        settings: TrainingSettings,
        report: TrainingLog,
        model: Model,
        mesh: Mesh | None,
        rows: list[Conversation],
        file: IO[str],
        path: Path,
    ):
        self.settings, self.report, self.mesh, self.file, self.path = settings, report, mesh, file, path
        self.out = Path(settings.out)
        corpus = pipeline.scan_dataset(model, rows, settings, report.looked)
        report.say(f"attention: {model.attention}")
        for reason in corpus.unread:
            report.warn(f"left out: {reason}")
        self.parts = _parts(settings, pipeline.batches_per_epoch(corpus, settings))
        self.total = self.parts[-1].end
        self.identity = checkpoints.identity(settings, corpus.digest, model.fingerprint)
        self.params, self.model = model.params, dataclasses.replace(model, params=None)
        self.data = pipeline.batches(self.model, corpus, settings, jax.process_index(), jax.process_count())
        self.tally = Tally(unread=len(corpus.unread))

    def finish(self) -> Path:
        """Run what is left to run."""
        settings, target = self.settings, self.out / "model"
        with Checkpoints(self.out, settings.checkpoint.keep, self.identity) as kept:
            note = kept.note or {"stage": 0, "tally": self.tally.as_data()}
            begin, self.tally = kept.step or 0, Tally(**note["tally"])
            if target.exists():
                if begin == self.total:
                    self.report.say(f"{target} is complete")
                    return target
                raise RequestError(
                    f"{target}: there is a model already, not of this run; remove it, or give another out"
                )
            metrics.cut(self.file, self.path, begin)
            if begin:
                self.report.say(f"going on after step {begin} of {self.total}")
            # Low-rank updates join the tree once, so that later stages go on with them.
            params = step.attach(self.params, settings)
            self.params = None
            with _stoppable() as stopped:
                for part in self.parts:
                    params = self._stage(part, params, kept, begin, note["stage"], stopped)
            kept.wait()
            _export(target, self.model, params, settings)
        return target

    def _stage(
        self, part: _Part, params: Params, kept: Checkpoints, begin: int, reached: int, stopped: threading.Event
    ) -> Params:
        """Parameters after a stage; `begin`: the step that the run went on from, in stage number `reached`."""
        if part.number < reached:
            learnt = kept.stage(part.number, _learning(params, self.settings, part.stage))
            return step.join(learnt, params)
        state, frozen, update = step.prepare(
            self.model.config,
            params,
            self.settings,
            part.stage,
            part.end - part.begin,
            kernel=self.model.kernel,
            mesh=self.mesh,
        )
        if part.number == reached and begin:
            state = kept.restore(state, self.data)

        def note():
            return {"stage": part.number, "tally": self.tally.as_data()}

        def save(done, state):
            return kept.save(done, state, self.data, note())

        state = self._steps(part, max(begin, part.begin), state, frozen, update, save, stopped)
        if part.number + 1 < len(self.parts):
            kept.keep_stage(part.number, state.params)
        return step.join(state.params, params)

    def _steps(self, part: _Part, done: int, state, frozen, update, save: Callable, stopped: threading.Event):
        """The state after the steps of a stage that are left, of which `done` in the run were made."""
        running: tuple[int, Any, Loaded] | None = None
        clock = time.perf_counter()

        def count() -> None:
            """Wait for the step that is running, and count it."""
            nonlocal clock
            if running:
                at, measures, loaded = running
                measures, before, clock = jax.device_get(measures), clock, time.perf_counter()
                self._check_finite(at, part.stage, measures)
                self.tally.add(measures, loaded.tokens, loaded.unread, clock - before)
                self.report.step(at, self.total)

        while done < part.end:
            loaded = next(self.data)
            state, measures = update(state, frozen, self._placed(loaded.batch))
            # The device has its next step before the last one's figures are waited for.
            count()
            done, running = done + 1, (done + 1, measures, loaded)
            stop = stopped.is_set()
            tell = done % self.settings.log_every == 0 or done == part.end
            keep = done % self.settings.checkpoint.every == 0 or done == part.end or stop
            if tell or keep:
                count()
                running = None
            if tell:
                line = self.tally.line(done, part.stage.name)
                metrics.append(self.file, line)
                self.report.line(line)
            if keep:
                save(done, state)
            if stop:
                raise KeyboardInterrupt
        return state

    def _check_finite(self, at: int, stage: Stage, measures: dict[str, np.ndarray]) -> None:
        loss, norm = measures["loss"], measures["grad_norm"]
        if not (np.isfinite(loss) and np.isfinite(norm)):
            raise RequestError(
                f"{self.out}: at step {at} the loss is {loss} and its gradient {norm}; start again in another folder, "
                f"with a lower rate for stage {stage.name}"
            )

    def _placed(self, batch: Batch) -> Batch:
        """The batch on the devices."""
        if self.mesh is None:
            return batch
        where = parallel.examples(self.mesh)
        return Batch(*(jax.make_array_from_process_local_data(where, part) for part in batch))


def _parts(settings: TrainingSettings, epoch: int) -> list[_Part]:
    """The stages, with epochs of `epoch` steps counted out."""
    parts: list[_Part] = []
    for number, stage in enumerate(settings.stages):
        begin = parts[-1].end if parts else 0
        steps = stage.epochs * epoch if stage.steps is None else stage.steps
        parts.append(_Part(number, stage, begin, begin + steps))
    return parts


def _load(settings: TrainingSettings) -> tuple[Model, Mesh | None]:
    """The model to begin with, and the mesh (None for one device)."""
    # What learns begins as exact as the checkpoint is; what does not is wanted in the dtype that it computes in.
    whole = settings.lora is None or any(set(stage.train) - {"language"} for stage in settings.stages)
    dtype = settings.params_dtype if whole else settings.compute_dtype
    many = settings.mesh.model > 1 or (settings.mesh.data or jax.device_count()) > 1
    # A model that is spread over devices may be larger than one of them.
    with jax.default_device(jax.local_devices(backend="cpu")[0]) if many else nullcontext():
        model = load(settings.model, dtype, attention="reference")
    # The kernel suits what the run computes in, which need not be what the parameters are kept in.
    kernel, reason = kernels.select_kernel(dtype=settings.compute_dtype, width=model.config.language.head_width)
    model = dataclasses.replace(model, kernel=kernel, attention=reason)
    if not many:
        return model, None
    mesh = parallel.make_mesh(model.config, settings.mesh.data, settings.mesh.model)
    ways = mesh.shape[parallel.DATA]
    if settings.batch % ways:
        raise RequestError(f"batch must be a multiple of {ways}, the mesh's data axis, not {settings.batch}")
    return model, mesh


def _learning(params: Params, settings: TrainingSettings, stage: Stage) -> Params:
    """What a stage learns, as shapes."""
    shapes = jax.eval_shape(lambda tree: tree, step.divide(params, settings, stage)[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(settings.params_dtype)), shapes)


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second does what it usually does."""
    stopped, before = threading.Event(), {}

    def stop(number: int, _: object) -> None:
        stopped.set()
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():  # no other may handle signals
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _export(target: Path, model: Model, params: Params, settings: TrainingSettings) -> None:
    """Write the model as a checkpoint directory of the original's layout, all or nothing."""
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


def _suffix() -> str:
    """Each process has figures of its own, the same ones; the first one's file has the plain name."""
    return f"-{jax.process_index()}" if jax.process_index() else ""
