"""Runs a benchmark. Each video is watched once and asked all its questions; a record per video goes into the run's folder.

Videos are assigned to processes by index, so that any number of processes gives the same records. A run resumes after an
interruption, and retries videos that could not be watched. If oracle files are replayed, a video's questions may need two
different memories: it is then watched twice, and both memories exist at the same time for a while.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import grain
import jax

from vxl2_jax import hardware
from vxl2_jax.answer import Answer
from vxl2_jax.api import Model
from vxl2_jax.batch import Job, JobResult
from vxl2_jax.cache.pooling import check_compression
from vxl2_jax.errors import RequestError, VideoError
from vxl2_jax.evaluation import choices, data, replay, run_folder, subtitles
from vxl2_jax.evaluation.data import BenchmarkVideo
from vxl2_jax.evaluation.replay import Replay, ReplayPass
from vxl2_jax.evaluation.rows import Row, letter
from vxl2_jax.evaluation.scores import judge
from vxl2_jax.evaluation.settings import watch_settings
from vxl2_jax.layout import attention_pairs
from vxl2_jax.memory import VideoMemory
from vxl2_jax.options import AskOptions
from vxl2_jax.relevance import oracle
from vxl2_jax.storage.jsonl import append
from vxl2_jax.video.reader import open_video

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True)
class BenchmarkRun:
    """The settings of a run.

    Attributes:
      benchmark: the benchmark's module.
      items: its videos with their questions.
      mode: a name for the options.
      watch, ask: options of `Model.watch` and `Model.ask`.
      subtitles: put subtitles into the prompts.
      left_out: what is wrong with each annotation row that was left out.
      answer: one of `choices.WAYS`; for LIKELIHOOD, all rows must have options.
    """

    benchmark: ModuleType
    items: Sequence[BenchmarkVideo]
    mode: str
    watch: Mapping[str, Any]
    ask: Mapping[str, Any]
    subtitles: bool = False
    left_out: Sequence[str] = ()
    answer: str = choices.GENERATE

    @property
    def oracle(self) -> str | None:
        """The oracle file or folder to replay, if any."""
        relevance = str(self.ask["relevance"])
        return relevance.removeprefix(oracle.PREFIX) if relevance.startswith(oracle.PREFIX) else None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that all processes of a run share, except for the model's."""
        oracle_digest = {"oracle": replay.digest(self.oracle)} if self.oracle is not None else {}
        return {
            "benchmark": self.benchmark.NAME,
            "mode": self.mode,
            "videos": len(self.items),
            "questions": sum(len(item.rows) for item in self.items),
            "subtitles": self.subtitles,
            "answer": self.answer,
            "left_out": list(self.left_out),
            "annotations": data.digest(self.benchmark, self.items),
            "watch": watch_settings(self.watch),
            "ask": dict(self.ask),
            **oracle_digest,
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
    """Answer the questions about this process's videos that have no answer yet in the folder `out`.

    A video that cannot be read or asked (see `batch.JobResult`) gets a record with its error, a question that cannot be
    asked is listed with its error in the record of its video, and the run continues.

    Args:
      run: the settings.
      load: loads the model; called only if something is left to answer.
      out: the run's folder.
      process, processes: index and number of processes; by default JAX's.
      progress: called with (videos done, videos of this process).

    Raises RequestError for options out of range, for invalid oracle files or those of another benchmark, for a folder with
    a run of other settings, if another process is writing the same records, or without the backend that JAX is to use.
    """
    hardware.device()
    if process is None or processes is None:
        if process is not processes:
            raise RequestError("give both --process and --processes, or neither")
        process, processes = jax.process_index(), jax.process_count()
    if not 0 <= process < processes:
        raise RequestError(f"process {process} of {processes}: processes are counted from 0")
    AskOptions(**run.ask).check()
    replayed = None
    if run.oracle is not None:
        if run.mode != "bilevel":
            raise RequestError(f"relevance {oracle.PREFIX}FILE selects chunks: it needs mode bilevel, not {run.mode}")
        replayed = replay.read(run.benchmark.NAME, run.oracle, run.items)
    run_folder.check_settings(out, run.settings)
    share = [run.items[i] for i in grain.MapDataset.range(len(run.items))[process::processes]]
    with run_folder.open_records(out, process, processes) as file:
        errors = run_folder.read_errors(out)
        unanswered = [item for item in share if errors.get(item.video, "") is not None]
        todo = [item for item in unanswered if item.path is not None]
        model = load() if todo or not (out / run_folder.RUN_FILE).exists() else None
        if model:
            check_compression(run.watch["compression"], model.config.visual_tokens)
            run_folder.claim(out, run.settings | _model_settings(model), _made_with(model))
        for item in unanswered:
            if item.path is None and errors.get(item.video) != item.problem:
                append(file, {"index": item.index, "video": item.video, "error": item.problem})
        if not model or not todo:
            return
        report = progress or (lambda done, total: None)
        done = len(share) - len(todo)
        report(done, len(share))
        for number, record in enumerate(_records(model, run, todo, replayed), done + 1):
            append(file, record)
            report(number, len(share))


def _records(
    model: Model, run: BenchmarkRun, items: Sequence[BenchmarkVideo], replayed: Replay | None
) -> Iterator[dict[str, Any]]:
    """A record per video, in order."""
    passes = replayed.passes(run.watch, run.ask) if replayed else [ReplayPass(run.watch, run.ask)]
    queues = [(one, model.answer_all(_jobs(run, items, one), watch=one.watch, ask=one.ask)) for one in passes]
    with _count_executables() as executables:
        for item in items:
            start = time.perf_counter()
            # The results are not bound to a name: that would keep a memory alive while the next video is watched.
            parts = [
                _pass_record(run.benchmark, item, rows, next(results), replayed)
                for one, results in queues
                if (rows := _row_indices(item, one))
            ]
            yield {
                "index": item.index,
                "video": item.video,
                "file": item.file.name,
                **_merge(parts),
                "wall_s": round(time.perf_counter() - start, 4),
                "executables": executables(),
            }


def _jobs(run: BenchmarkRun, items: Sequence[BenchmarkVideo], replay_pass: ReplayPass) -> Iterator[Job]:
    """The videos that have questions in a pass, with the prompts."""
    for item in items:
        if indices := _row_indices(item, replay_pass):
            rows = _with_subtitles(item, run.watch.get("stream")) if run.subtitles else item.rows
            texts = None
            if run.answer == choices.LIKELIHOOD:
                prompts, texts = zip(*(choices.split_question(rows[index]) for index in indices), strict=True)
            else:
                prompts = [run.benchmark.prompt(rows[index]) for index in indices]
            for index, prompt in zip(indices, prompts, strict=True):
                replay_pass.before_asking(item, item.rows[index], prompt)
            yield Job(item.file, prompts, texts)


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
