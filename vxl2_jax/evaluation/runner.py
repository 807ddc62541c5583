"""Running a benchmark: each video is watched once and asked all its questions; a line per video goes into the run's folder.

Videos are shared out over processes by their number, so that any count of processes gives the same rows. What was
answered is left out, so that a run goes on where it was cut off; what could not be watched is tried again.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import grain
import jax

from vxl2_jax.api import Model
from vxl2_jax.asking import ORACLE, Answer, Options
from vxl2_jax.errors import RequestError, VideoError
from vxl2_jax.evaluation import data, folder, subtitles
from vxl2_jax.evaluation.data import Item
from vxl2_jax.evaluation.rows import Row
from vxl2_jax.evaluation.scores import judge
from vxl2_jax.jobs import Done, Job
from vxl2_jax.layout import attention_pairs
from vxl2_jax.storage.lines import append
from vxl2_jax.video.reader import open_video

_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True)
class Run:
    """What is evaluated: a benchmark's videos, and options of `Model.watch` and of `Model.ask`; `mode` only names them."""

    benchmark: ModuleType
    items: Sequence[Item]
    mode: str
    watch: Mapping[str, Any]
    ask: Mapping[str, Any]
    subtitles: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What must be alike in all parts of a run, and is told in its report; the model is not known yet."""
        return {
            "benchmark": self.benchmark.NAME, "mode": self.mode, "videos": len(self.items),
            "questions": sum(len(item.rows) for item in self.items), "subtitles": self.subtitles,
            "annotations": data.digest(self.benchmark, self.items), "watch": dict(self.watch), "ask": dict(self.ask),
        }


def evaluate(
    run: Run, load: Callable[[], Model], out: Path, *, process: int | None = None, processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Answer what is missing in the folder `out` of the videos that fall to a process.

    Args:
      load: gives the model; called only if there is something to answer.
      process, processes: which part of how many; those of JAX where they are None.
      progress: called with (videos done, videos of this process).

    Raises RequestError for options out of range, for a folder with a run of other settings, or one whose rows another
    process is writing. A video that cannot be read or would not fit gives a row with its error, and the run goes on.
    """
    if (process is None) != (processes is None):
        raise RequestError("give both, which process this is and how many there are, or neither")
    if process is None:
        process, processes = jax.process_index(), jax.process_count()
    if not 0 <= process < processes:
        raise RequestError(f"process {process} of {processes}: processes count from 0")
    Options(**run.ask).check()
    if str(run.ask["relevance"]).startswith(ORACLE):
        raise RequestError("relevance oracle:FILE: a benchmark's run does not replay oracle files; choose attention, say")
    folder.check(out, run.settings)
    share = [run.items[i] for i in grain.MapDataset.range(len(run.items))[process::processes]]
    with folder.adding(out, process, processes) as file:
        there = folder.records(out)
        left = [item for item in share if "answers" not in there.get(item.video, {})]
        lost = [item for item in left if item.path is None and there.get(item.video, {}).get("error") != item.problem]
        todo = [item for item in left if item.path is not None]
        done = len(share) - len(todo)
        if todo or not (out / folder.RUN).exists():
            model = load()
            folder.claim(out, run.settings | _model(model), _made_with(model))
        for item in lost:
            append(file, {"index": item.index, "video": item.video, "error": item.problem})
        if not todo:
            return
        tell = progress or (lambda done, total: None)
        tell(done, len(share))
        for record in _records(model, run, todo):
            append(file, record)
            done += 1
            tell(done, len(share))


def _records(model: Model, run: Run, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """A row per video, in order."""
    queue = (Job(item.path, [run.benchmark.prompt(row) for row in _told(item, run.subtitles)]) for item in items)
    answered = model.answer_all(queue, watch=run.watch, ask=run.ask)
    with _executables() as executables:
        for item in items:
            begin = time.perf_counter()
            # No name for what comes from the queue: it would keep a memory while the next video is watched.
            found = _found(run.benchmark, item, next(answered))
            yield {
                "index": item.index, "video": item.video, "file": item.path.name, **found,
                "wall_s": round(time.perf_counter() - begin, 4), "executables": executables(),
            }


def _found(benchmark: ModuleType, item: Item, done: Done) -> dict[str, Any]:
    if done.error:
        return {"error": str(done.error)}
    return _watched(done) | {"answers": list(_judged(benchmark, item, done.answers))}


def _told(item: Item, wanted: bool) -> Sequence[Row]:
    """The item's rows, with the subtitles that belong into their prompts where they are wanted."""
    if not wanted:
        return item.rows
    said = subtitles.NONE
    if item.srt is not None:
        try:
            source = open_video(item.path, size=1)
        except VideoError:  # opened again to be watched, it will say so
            return item.rows
        said = subtitles.at_frames(item.srt, source.native_fps, source.total_frames)
    return [replace(row, subtitles=said) for row in item.rows]


def _watched(done: Done) -> dict[str, Any]:
    """What a row says of a video that was watched, and of the time that it and its questions took, in seconds by stage."""
    memory = done.memory
    kept, causal = attention_pairs(memory.layout, memory.rule)
    asking: dict[str, float] = {}
    for answer in done.answers:  # those of a batch share its time
        for stage, seconds in answer.timings.items():
            asking[stage] = asking.get(stage, 0.0) + seconds / answer.batch
    return {
        "frames": memory.frames, "end_s": memory.end_s, "tokens": memory.layout.length,
        "attention": {"pairs_kept": kept, "pairs_causal": causal},
        "watching_s": _rounded(done.timings), "asking_s": _rounded(asking),
    }


def _judged(benchmark: ModuleType, item: Item, answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    for row, key, answer in zip(item.rows, data.keys(item), answers, strict=True):
        verdict = judge(benchmark, row, answer.text)
        yield {
            "key": key, "id": row.id, "question": row.question, "answer": row.answer, "response": answer.text,
            "read": benchmark.read(answer.text), "correct": verdict.correct, "counted": verdict.counted,
            "named": verdict.named, "groups": {field: list(values) for field, values in row.groups.items()},
            "cache": {"tokens": answer.cache_tokens, "tokens_dense": answer.cache_tokens_dense},
        }


def _rounded(timings: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(seconds, 4) for stage, seconds in timings.items()}


def _model(model: Model) -> dict[str, str]:
    return {"model_hash": model.fingerprint, "dtype": model.dtype.name}


def _made_with(model: Model) -> dict[str, str]:
    """What a run should not depend on, but may."""
    device = jax.devices()[0]
    return {
        "model": model.name, "attention": model.attention, "device": device.device_kind, "python": platform.python_version(),
        **{package: _version(package) for package in ("vxl2_jax", "jax", "jaxlib", "numpy", "av")},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@contextmanager
def _executables() -> Iterator[Callable[[], int]]:
    """Counts the executables that are compiled, or fetched compiled, from now on."""
    found = []

    def heard(event: str, duration: float, **_: object) -> None:
        if event == _COMPILED:
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield lambda: len(found)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
