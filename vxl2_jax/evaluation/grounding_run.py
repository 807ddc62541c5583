"""Runs a grounding benchmark. Each video is watched once and asked about all its sentences; a record per video, with the
responses and chunk scores that spans are computed from, goes into the run's folder. A run resumes after an interruption,
and retries videos that could not be watched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vxl2_jax.api import Model
from vxl2_jax.batch import Job, JobResult
from vxl2_jax.cache.pooling import check_compression
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import grounding, grounding_data, run_folder
from vxl2_jax.evaluation.grounding_data import GroundingVideo
from vxl2_jax.evaluation.records import GROUNDING
from vxl2_jax.evaluation.settings import watch_settings
from vxl2_jax.generate import Answer
from vxl2_jax.options import AskOptions
from vxl2_jax.storage.jsonl import append


@dataclass(frozen=True)
class GroundingRun:
    """The settings of a run.

    Attributes:
      benchmark: the format of the annotations.
      items: the videos with their sentences.
      mode: a name for the settings.
      template: of the questions.
      watch, ask: options of `Model.watch` and `Model.ask`.
      left_out: sentences of the annotation file without a window.
    """

    benchmark: str
    items: Sequence[GroundingVideo]
    mode: str
    template: str
    watch: Mapping[str, Any]
    ask: Mapping[str, Any]
    left_out: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that all records of a folder share, except for the model's."""
        return {
            "benchmark": self.benchmark,
            "mode": self.mode,
            "videos": len(self.items),
            "left_out": self.left_out,
            "moments": sum(len(item.moments) for item in self.items),
            "annotations": grounding_data.digest(self.items),
            "template": self.template,
            "watch": watch_settings(self.watch),
            "ask": dict(self.ask),
        }


def evaluate(
    run: GroundingRun, load: Callable[[], Model], out: Path, *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Answer the questions that have no answer yet in the folder `out`.

    A video that cannot be read, or whose memory would not fit, gets a record with its error.

    Args:
      run: the settings.
      load: loads the model; called only if something is left to answer.
      out: the run's folder.
      progress: called with (videos done, videos in all).

    Raises RequestError for invalid options or an invalid template, for a folder with a run of other settings, or one that
    another process is writing.
    """
    AskOptions(**run.ask).check()
    grounding.fill_template(run.template, "")
    run_folder.check_settings(out, run.settings, GROUNDING)
    with run_folder.open_records(out, GROUNDING) as file:
        errors = run_folder.read_errors(out, GROUNDING)
        unanswered = [item for item in run.items if errors.get(item.video, "") is not None]
        todo = [item for item in unanswered if item.path is not None]
        model = load() if todo or not (out / run_folder.RUN_FILE).exists() else None
        if model:
            if "compression" in run.watch:
                check_compression(run.watch["compression"], model.config.visual_tokens)
            model_settings = {"model_hash": model.fingerprint, "dtype": model.dtype.name}
            made_with = {"model": Path(model.name).name, "kernel": model.kernel_reason, "cores": os.cpu_count()}
            run_folder.claim(out, run.settings | model_settings, made_with, GROUNDING)
        for item in unanswered:
            if item.path is None and errors.get(item.video) != item.problem:
                append(file, {"index": item.index, "video": item.video, "error": item.problem})
        if not model or not todo:
            return
        report = progress or (lambda done, total: None)
        done = len(run.items) - len(todo)
        report(done, len(run.items))
        for number, record in enumerate(_records(model, run, todo), done + 1):
            append(file, record)
            report(number, len(run.items))


def _records(model: Model, run: GroundingRun, items: Sequence[GroundingVideo]) -> Iterator[dict[str, Any]]:
    """A record per video, in order; the next video is read in the background."""
    jobs = (
        Job(item.file, [grounding.fill_template(run.template, moment.query) for moment in item.moments])
        for item in items
    )
    results = model.answer_all(jobs, watch=run.watch, ask=run.ask)
    for item in items:
        start = time.perf_counter()
        record = {"index": item.index, "video": item.video, "file": item.file.name, **_answers(item, next(results))}
        yield record | {"wall_s": round(time.perf_counter() - start, 3)}


def _answers(item: GroundingVideo, result: JobResult) -> dict[str, Any]:
    """The part of a record that comes from the model."""
    if result.memory is None:
        return {"error": str(result.error)}
    asked = list(zip(item.moments, result.answers, strict=True))
    failed = [{"question": one.query, "error": str(error)} for one, error in asked if isinstance(error, RequestError)]
    answers = [
        {
            "id": moment.id,
            "query": moment.query,
            "windows": moment.windows,
            "response": answer.text,
            "chunks": [[chunk.start_s, chunk.end_s, float(f"{chunk.score:.4g}")] for chunk in answer.chunks],
        }
        for moment, answer in asked
        if isinstance(answer, Answer)
    ]
    return {
        "frames": result.memory.frames,
        "end_s": result.memory.end_s,
        **({"notes": list(result.memory.notes)} if result.memory.notes else {}),
        "tokens": result.memory.layout.length,
        "answers": answers,
        **({"failed": failed} if failed else {}),
    }
