"""Running a grounding benchmark: each video is watched once and asked about all its sentences; a row per video goes into
the run's folder, with all that spans are made of. What was answered is left out, what could not be watched tried again.
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
from vxl2_jax.evaluation import folder, grounding, grounding_data
from vxl2_jax.evaluation.grounding_data import GroundingVideo
from vxl2_jax.generate import AskOptions
from vxl2_jax.memory import check_compression
from vxl2_jax.storage.jsonl import append


@dataclass(frozen=True)
class GroundingRun:
    """What is asked of which videos: form of the annotations, a name of the settings, the question's template, options of
    `Model.watch` and of `Model.ask`; left_out: sentences of the file without a window."""

    form: str
    items: Sequence[GroundingVideo]
    mode: str
    template: str
    watch: Mapping[str, Any]
    ask: Mapping[str, Any]
    left_out: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """What must be alike in all rows of a folder; the model is not known yet."""
        return {
            "benchmark": self.form,
            "mode": self.mode,
            "videos": len(self.items),
            "left_out": self.left_out,
            "moments": sum(len(item.moments) for item in self.items),
            "annotations": grounding_data.digest(self.items),
            "template": self.template,
            "watch": dict(self.watch),
            "ask": dict(self.ask),
        }


def evaluate(
    run: GroundingRun, load: Callable[[], Model], out: Path, *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Answer what is missing in the folder `out`.

    Args:
      load: gives the model; called only if there is something to answer.
      progress: called with (videos done, videos in all).

    Raises RequestError for options or a template that make no sense, for a folder with a run of other settings, or one
    that another process is writing. A video that cannot be read or would not fit gives a row with its error.
    """
    AskOptions(**run.ask).check()
    grounding.question(run.template, "")
    folder.check(out, run.settings)
    tell = progress or (lambda done, total: None)
    with folder.adding(out, 0, 1) as file:
        there = folder.records(out)
        left = [item for item in run.items if "answers" not in there.get(item.video, {})]
        todo = [item for item in left if item.path is not None]
        if todo or not (out / folder.RUN).exists():
            model = load()
            if "compression" in run.watch:
                check_compression(run.watch["compression"], model.config.visual_tokens)
            known = {"model_hash": model.fingerprint, "dtype": model.dtype.name}
            made_with = {"model": Path(model.name).name, "kernel": model.attention, "cores": os.cpu_count()}
            folder.claim(out, run.settings | known, made_with)
        for item in left:
            if item.path is None and there.get(item.video, {}).get("error") != item.problem:
                append(file, {"index": item.index, "video": item.video, "error": item.problem})
        if todo:
            done = len(run.items) - len(todo)
            tell(done, len(run.items))
            for number, row in enumerate(_rows(model, run, todo), done + 1):
                append(file, row)
                tell(number, len(run.items))


def _rows(model: Model, run: GroundingRun, items: Sequence[GroundingVideo]) -> Iterator[dict[str, Any]]:
    """A row per video, in order; the next one is read meanwhile."""
    queue = (
        Job(item.path, [grounding.question(run.template, moment.query) for moment in item.moments]) for item in items
    )
    answered = model.answer_all(queue, watch=run.watch, ask=run.ask)
    for item in items:
        begun = time.perf_counter()
        row = {"index": item.index, "video": item.video, "file": item.path.name, **_found(item, next(answered))}
        yield row | {"wall_s": round(time.perf_counter() - begun, 3)}


def _found(item: GroundingVideo, done: JobResult) -> dict[str, Any]:
    if done.error:
        return {"error": str(done.error)}
    answers = [
        {
            "id": moment.id,
            "query": moment.query,
            "windows": moment.windows,
            "response": answer.text,
            "chunks": [[chunk.start_s, chunk.end_s, float(f"{chunk.score:.4g}")] for chunk in answer.chunks],
        }
        for moment, answer in zip(item.moments, done.answers, strict=True)
    ]
    return {
        "frames": done.memory.frames,
        "end_s": done.memory.end_s,
        "tokens": done.memory.layout.length,
        "answers": answers,
    }
