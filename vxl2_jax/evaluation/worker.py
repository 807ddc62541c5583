"""What a worker does with the videos of a benchmark: each is watched once and asked all its questions, and becomes a record.

If oracle files are replayed, a video's questions may need two different memories: it is then watched twice.
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from vxl2_jax import hardware
from vxl2_jax.answer import Answer
from vxl2_jax.api import Model
from vxl2_jax.batch import Job, JobResult
from vxl2_jax.cache.pooling import check_compression
from vxl2_jax.errors import VideoError
from vxl2_jax.evaluation import choices, data, subtitles
from vxl2_jax.evaluation.benchmark_run import BenchmarkRun
from vxl2_jax.evaluation.data import BenchmarkVideo
from vxl2_jax.evaluation.replay import Replay, ReplayPass
from vxl2_jax.evaluation.rows import Row, letter
from vxl2_jax.evaluation.scores import judge
from vxl2_jax.fleet.work import FleetWorker
from vxl2_jax.layout import attention_pairs
from vxl2_jax.memory import VideoMemory
from vxl2_jax.relevance import oracle
from vxl2_jax.video.reader import open_video

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True)
class BenchmarkRecipe:
    """A worker of a run: contents are `BenchmarkVideo`s with a file, rows are records; see `fleet.work.Recipe`.

    Attributes:
      run: the settings; its items are not used.
      load: loads the model; to be pickled for workers in other processes.
      memories: see `Model.answer_all`.
    """

    run: BenchmarkRun
    load: Callable[[], Model]
    memories: Path | str | None = None

    def __call__(self) -> FleetWorker:
        """Load the model. Raises RequestError for settings that it cannot have."""
        model, run = self.load(), self.run
        check_compression(run.watch["compression"], model.config.visual_tokens)
        about = {"settings": _model_settings(model), "made_with": _made_with(model)}
        replayed = None if run.oracle is None else Replay(oracle.read(run.oracle))
        return FleetWorker(about, lambda items: records(model, run, items, replayed, self.memories))


def records(
    model: Model,
    run: BenchmarkRun,
    items: Iterable[BenchmarkVideo],
    replayed: Replay | None,
    memories: Path | str | None,
) -> Iterator[dict[str, Any]]:
    """A record per video, in order. Without replayed files, the next video is opened while one is watched."""
    with _count_executables() as executables:
        start = time.perf_counter()
        keep = {} if memories is None else {"memories": memories}
        for item, parts in _parts(model, run, items, replayed, keep):
            yield {
                "index": item.index,
                "video": item.video,
                "file": item.file.name,
                **_merge(parts),
                "wall_s": round(time.perf_counter() - start, 4),
                "executables": executables(),
            }
            start = time.perf_counter()


def _parts(
    model: Model,
    run: BenchmarkRun,
    items: Iterable[BenchmarkVideo],
    replayed: Replay | None,
    keep: Mapping[str, Path | str],
) -> Iterator[tuple[BenchmarkVideo, list[dict[str, Any]]]]:
    """Each video with the parts of its record, one for each pass that has questions about it."""
    if not replayed:
        for item, part in _pass(model, run, items, ReplayPass(run.watch, run.ask), None, keep):
            yield item, [part]
        return
    passes = replayed.passes(run.watch, run.ask)
    for item in items:
        asked = [one for one in passes if _row_indices(item, one)]
        yield item, [part for one in asked for _, part in _pass(model, run, [item], one, replayed, keep)]


def _pass(
    model: Model,
    run: BenchmarkRun,
    items: Iterable[BenchmarkVideo],
    one: ReplayPass,
    replayed: Replay | None,
    keep: Mapping[str, Path | str],
) -> Iterator[tuple[BenchmarkVideo, dict[str, Any]]]:
    """Each video with its part of a pass."""
    taken: deque[BenchmarkVideo] = deque()

    def jobs() -> Iterator[Job]:
        for item in items:
            taken.append(item)
            yield _job(run, item, one)

    for result in model.answer_all(jobs(), watch=one.watch, ask=one.ask, **keep):
        item = taken.popleft()
        part = _pass_record(run.benchmark, item, _row_indices(item, one), result, replayed)
        del result  # it would keep a memory alive while the next video is watched
        yield item, part


def _job(run: BenchmarkRun, item: BenchmarkVideo, replay_pass: ReplayPass) -> Job:
    """A video with the prompts of a pass."""
    indices = _row_indices(item, replay_pass)
    rows = _with_subtitles(item, run.watch.get("stream")) if run.subtitles else item.rows
    texts = None
    if run.answer == choices.LIKELIHOOD:
        prompts, texts = zip(*(choices.split_question(rows[index]) for index in indices), strict=True)
    else:
        prompts = [run.benchmark.prompt(rows[index]) for index in indices]
    for index, prompt in zip(indices, prompts, strict=True):
        replay_pass.before_asking(item, item.rows[index], prompt)
    return Job(item.file, prompts, texts)


def _row_indices(item: BenchmarkVideo, replay_pass: ReplayPass) -> list[int]:
    """The indices of the rows that a pass includes."""
    return [index for index, row in enumerate(item.rows) if replay_pass.includes(item, row)]


def _pass_record(
    benchmark: ModuleType, item: BenchmarkVideo, indices: Sequence[int], result: JobResult, replayed: Replay | None
) -> dict[str, Any]:
    """The record of one pass over a video; its answers by the index of the row."""
    if result.memory is None:
        return {"error": str(result.error)}
    answers = {i: one for i, one in zip(indices, result.answers, strict=True) if isinstance(one, Answer)}
    entry = _video_entry(result.memory, result.timings, list(answers.values()))
    failed = [
        {"question": item.rows[index].question, "error": str(one)}
        for index, one in zip(indices, result.answers, strict=True)
        if not isinstance(one, Answer)
    ]
    return entry | {"answers": dict(_answers(benchmark, item, answers, replayed)), "failed": failed}


def _merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One record from those of the passes: answers in the order of the rows, attention and seconds summed."""
    if errors := [part for part in parts if "error" in part]:
        return dict(errors[0])
    answers = {index: answer for part in parts for index, answer in part["answers"].items()}
    sums = {name: _sum_by_key([part[name] for part in parts]) for name in ("attention", "watching_s", "asking_s")}
    failed = [one for part in parts for one in part["failed"]]
    merged = {**parts[0], **sums, "answers": [answers[index] for index in sorted(answers)], "failed": failed}
    return merged if failed else {name: value for name, value in merged.items() if name != "failed"}


def _sum_by_key(parts: Sequence[Mapping[str, int | float]]) -> dict[str, int | float]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: round(sum(part.get(name, 0) for part in parts), 4) for name in names}


def _with_subtitles(item: BenchmarkVideo, stream: int | None = None) -> Sequence[Row]:
    """The item's rows with the subtitles for their prompts. stream: the stream of the file that is watched."""
    text = subtitles.NONE
    if item.srt is not None:
        try:
            source = open_video(item.file, size=1, stream=stream)
        except VideoError:  # watching it will report the error
            return item.rows
        text = subtitles.at_frames(item.srt, source.native_fps, source.total_frames)
    return [replace(row, subtitles=text) for row in item.rows]


def _video_entry(memory: VideoMemory, timings: Mapping[str, float], answers: Sequence[Answer]) -> dict[str, Any]:
    """The part of a record about the video, with seconds by stage of watching it and of all its questions."""
    kept, causal = attention_pairs(memory.layout, memory.rule)
    asking: dict[str, float] = {}
    for answer in answers:  # the answers of a batch share its time
        for stage, seconds in answer.timings.items():
            asking[stage] = asking.get(stage, 0.0) + seconds / answer.batch
    return {
        "frames": memory.frames,
        "end_s": memory.end_s,
        **({"notes": list(memory.notes)} if memory.notes else {}),
        "tokens": memory.layout.length,
        "attention": {"pairs_kept": kept, "pairs_causal": causal},
        "watching_s": _rounded(timings),
        "asking_s": _rounded(asking),
    }


def _answers(
    benchmark: ModuleType, item: BenchmarkVideo, answers: Mapping[int, Answer], replayed: Replay | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index of the row, its entry in the record) for each answer, which are given by the index of the row."""
    keys = data.question_keys(item)
    for index, answer in answers.items():
        row = item.rows[index]
        response, scores = answer.text, [choice.score for choice in answer.choices]
        if scores:  # in a form from which every benchmark reads the letter
            response = f"{letter(scores.index(max(scores)))})"
        verdict = judge(benchmark, row, response)
        entry = {
            "key": keys[index],
            "id": row.id,
            "question": row.question,
            "answer": row.answer,
            "response": response,
            "read": benchmark.read(response),
            "correct": None if row.answer is None else verdict.correct,
            "counted": verdict.counted,
            "named": verdict.named,
            "groups": {field: list(values) for field, values in row.groups.items()},
            "cache": {"tokens": answer.cache_tokens, "tokens_dense": answer.cache_tokens_dense},
        }
        if scores:
            entry["option_scores"] = [round(score, 4) for score in scores]
        yield index, entry | ({"oracle": replayed.describe(item, row)} if replayed else {})


def _rounded(timings: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(seconds, 4) for stage, seconds in timings.items()}


def _model_settings(model: Model) -> dict[str, str]:
    return {"model_hash": model.fingerprint, "dtype": model.dtype.name}


def _made_with(model: Model) -> dict[str, str]:
    """The environment, on which results should not depend, but may."""
    device = hardware.device()
    return {
        "model": model.name,
        "attention": model.kernel_reason,
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
def _count_executables() -> Generator[Callable[[], int], None, None]:
    """Counts the executables compiled, or loaded from the compilation cache, since the context was entered."""
    durations: list[float] = []  # appending is safe from any thread

    def listener(event: str, duration_secs: float, **_: object) -> None:
        if event == _COMPILE_EVENT:
            durations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield lambda: len(durations)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
