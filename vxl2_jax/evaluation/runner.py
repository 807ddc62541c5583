"""Running a benchmark: each video is watched once and asked all its questions; a line per video goes into the run's folder.

Videos are shared out over processes by their number, so that any count of processes gives the same rows. What was
answered is left out, so that a run goes on where it was cut off; what could not be watched is tried again. Only where
oracle files are replayed, some of a video's questions may need another memory than the others: it is watched twice then,
and both memories stand for a while.
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
from vxl2_jax.batch import Job, JobResult
from vxl2_jax.errors import RequestError, VideoError
from vxl2_jax.evaluation import data, folder, replay, subtitles
from vxl2_jax.evaluation.data import BenchmarkVideo
from vxl2_jax.evaluation.replay import Replay, ReplayPass
from vxl2_jax.evaluation.rows import Row
from vxl2_jax.evaluation.scores import judge
from vxl2_jax.generate import Answer, AskOptions
from vxl2_jax.layout import attention_pairs
from vxl2_jax.relevance import oracle
from vxl2_jax.storage.jsonl import append
from vxl2_jax.video.reader import open_video

_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True)
class BenchmarkRun:
    """What is evaluated: a benchmark's videos, and options of `Model.watch` and of `Model.ask`; `mode` only names them."""

    benchmark: ModuleType
    items: Sequence[BenchmarkVideo]
    mode: str
    watch: Mapping[str, Any]
    ask: Mapping[str, Any]
    subtitles: bool = False

    @property
    def oracle(self) -> str | None:
        """The oracle file or folder that is replayed."""
        named = str(self.ask["relevance"])
        return named.removeprefix(oracle.PREFIX) if named.startswith(oracle.PREFIX) else None

    @property
    def settings(self) -> dict[str, Any]:
        """What must be alike in all parts of a run, and is told in its report; the model is not known yet."""
        replayed = {"oracle": replay.digest(self.oracle)} if self.oracle is not None else {}
        return {
            "benchmark": self.benchmark.NAME,
            "mode": self.mode,
            "videos": len(self.items),
            "questions": sum(len(item.rows) for item in self.items),
            "subtitles": self.subtitles,
            "annotations": data.digest(self.benchmark, self.items),
            "watch": dict(self.watch),
            "ask": dict(self.ask),
            **replayed,
        }


def evaluate(
    run: BenchmarkRun,
    load: Callable[[], Model],
    out: Path,
    *,
    process: int | None = None,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Answer what is missing in the folder `out` of the videos that fall to a process.

    Args:
      load: gives the model; called only if there is something to answer.
      process, processes: which part of how many; those of JAX where they are None.
      progress: called with (videos done, videos of this process).

    Raises RequestError for options out of range, for oracle files that are not of the form or not of this benchmark, for
    a folder with a run of other settings, or one whose rows another process is writing. A video that cannot be read or
    would not fit gives a row with its error, and the run goes on.
    """
    if (process is None) != (processes is None):
        raise RequestError("give both, which process this is and how many there are, or neither")
    if process is None:
        process, processes = jax.process_index(), jax.process_count()
    if not 0 <= process < processes:
        raise RequestError(f"process {process} of {processes}: processes count from 0")
    AskOptions(**run.ask).check()
    replayed = None
    if run.oracle is not None:
        if run.mode != "bilevel":
            raise RequestError(
                f"relevance {oracle.PREFIX}FILE chooses chunks, which is mode bilevel; give that, not {run.mode}"
            )
        replayed = replay.read(run.benchmark.NAME, run.oracle, run.items)
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
        for record in _records(model, run, todo, replayed):
            append(file, record)
            done += 1
            tell(done, len(share))


def _records(
    model: Model, run: BenchmarkRun, items: Sequence[BenchmarkVideo], replayed: Replay | None
) -> Iterator[dict[str, Any]]:
    """A row per video, in order."""
    parts = replayed.parts(run.watch, run.ask) if replayed else [ReplayPass(run.watch, run.ask)]
    queues = [(part, model.answer_all(_jobs(run, items, part), watch=part.watch, ask=part.ask)) for part in parts]
    with _executables() as executables:
        for item in items:
            begin = time.perf_counter()
            # No name for what comes from the queue: it would keep a memory while the next video is watched.
            found = [
                _found(run.benchmark, item, rows, next(answered), replayed)
                for part, answered in queues
                if (rows := _places(item, part))
            ]
            yield {
                "index": item.index,
                "video": item.video,
                "file": item.path.name,
                **_joined(found),
                "wall_s": round(time.perf_counter() - begin, 4),
                "executables": executables(),
            }


def _jobs(run: BenchmarkRun, items: Sequence[BenchmarkVideo], part: ReplayPass) -> Iterator[Job]:
    """The videos of which a part asks something, with its prompts."""
    for item in items:
        if places := _places(item, part):
            told = _told(item, run.subtitles)
            prompts = [run.benchmark.prompt(told[place]) for place in places]
            for place, prompt in zip(places, prompts, strict=True):
                part.announce(item, item.rows[place], prompt)
            yield Job(item.path, prompts)


def _places(item: BenchmarkVideo, part: ReplayPass) -> list[int]:
    """Which of an item's rows a part asks."""
    return [place for place, row in enumerate(item.rows) if part.holds(item, row)]


def _found(
    benchmark: ModuleType, item: BenchmarkVideo, places: Sequence[int], done: JobResult, replayed: Replay | None
) -> dict[str, Any]:
    """What a row says of the questions at `places` of an item; its answers by place."""
    if done.error:
        return {"error": str(done.error)}
    return _watched(done) | {"answers": dict(_judged(benchmark, item, places, done.answers, replayed))}


def _joined(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of what the parts found, answers in the item's order. Attention and seconds are those of all memories."""
    if errors := [each for each in found if "error" in each]:
        return dict(errors[0])
    answers = {place: answer for each in found for place, answer in each["answers"].items()}
    sums = {name: _summed([each[name] for each in found]) for name in ("attention", "watching_s", "asking_s")}
    return {**found[0], **sums, "answers": [answers[place] for place in sorted(answers)]}


def _summed(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: round(sum(part.get(name, 0) for part in parts), 4) for name in names}


def _told(item: BenchmarkVideo, wanted: bool) -> Sequence[Row]:
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


def _watched(done: JobResult) -> dict[str, Any]:
    """What a row says of a video that was watched, and of the time that it and its questions took, in seconds by stage."""
    memory = done.memory
    kept, causal = attention_pairs(memory.layout, memory.rule)
    asking: dict[str, float] = {}
    for answer in done.answers:  # those of a batch share its time
        for stage, seconds in answer.timings.items():
            asking[stage] = asking.get(stage, 0.0) + seconds / answer.batch
    return {
        "frames": memory.frames,
        "end_s": memory.end_s,
        "tokens": memory.layout.length,
        "attention": {"pairs_kept": kept, "pairs_causal": causal},
        "watching_s": _rounded(done.timings),
        "asking_s": _rounded(asking),
    }


def _judged(
    benchmark: ModuleType,
    item: BenchmarkVideo,
    places: Sequence[int],
    answers: Sequence[Answer],
    replayed: Replay | None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    keys = data.keys(item)
    for place, answer in zip(places, answers, strict=True):
        row = item.rows[place]
        verdict = judge(benchmark, row, answer.text)
        yield (
            place,
            {
                "key": keys[place],
                "id": row.id,
                "question": row.question,
                "answer": row.answer,
                "response": answer.text,
                "read": benchmark.read(answer.text),
                "correct": verdict.correct,
                "counted": verdict.counted,
                "named": verdict.named,
                "groups": {field: list(values) for field, values in row.groups.items()},
                "cache": {"tokens": answer.cache_tokens, "tokens_dense": answer.cache_tokens_dense},
                **({"oracle": replayed.told(item, row)} if replayed else {}),
            },
        )


def _rounded(timings: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(seconds, 4) for stage, seconds in timings.items()}


def _model(model: Model) -> dict[str, str]:
    return {"model_hash": model.fingerprint, "dtype": model.dtype.name}


def _made_with(model: Model) -> dict[str, str]:
    """What a run should not depend on, but may."""
    device = jax.devices()[0]
    return {
        "model": model.name,
        "attention": model.attention,
        "device": device.device_kind,
        "python": platform.python_version(),
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
