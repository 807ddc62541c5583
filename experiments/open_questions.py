"""The questions that the method leaves open, measured with nano: a JSON file and a picture for each.

    python -m experiments.open_questions --question block_size
    python -m experiments.open_questions --question all              # all of them, one after the other

    block_size      how large a pre-fill block, and how many before it
    selection       how much is loaded dense, in chunks of what size, how much is pooled
    halves          chunked pre-filling alone, bi-level loading alone, both
    question_types  the answers of `halves`, by type of question
    bursty          content evenly spread, or in bursts
    scene_changes   rapid scene changes, on the borders of groups and chunks or off them
    evidence        evidence in one place, in two far ones, spread evenly
    cost            FLOPs and bytes saved against seconds saved

Clips are drawn from --seed, the same in every setting; each is rendered and goes through the vision half once. Frames
are given as arrays (no video file between), with real footage behind the pictures that training has not seen. Answers
are kept in --rows, a line a clip: the same command goes on where it was cut off; with more --clips it adds to what is
there. Intervals are 95 %: Wilson's for accuracies; changes are paired by question, the questions of a clip taken together.
The results are in docs/results/studies.md.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import vxl2_jax as vxl2
from experiments.studies import cost, running, tally
from experiments.studies.catalogue import STUDIES
from experiments.studies.study import Study
from vxl2_jax.evaluation.report import write_texts

_QUESTION = flags.DEFINE_enum("question", None, [*STUDIES, cost.NAME, "all"], "Which one.", required=True)
_MODEL = flags.DEFINE_string("model", "nano", "nano, or a checkpoint directory of the same vocabulary.")
_CLIPS = flags.DEFINE_integer("clips", None, "Clips of each kind; the default depends on the question.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 11, "Seed of clips, questions and lots; training uses none of these streams.")
_FOOTAGE = flags.DEFINE_enum("footage", "test", ["", "train", "test"], "Real video behind the pictures.")
_ROWS = flags.DEFINE_string("rows", "runs/open_questions", "Folder of the answers, NAME.jsonl.")
_OUT = flags.DEFINE_string("out", "experiments/results/open_questions", "Folder of NAME.json and NAME.png.")
_FRAMES = flags.DEFINE_list("frames", [str(count) for count in cost.FRAMES], "cost: lengths of the videos, in frames.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "cost: rounds whose medians are taken.", lower_bound=1)


def studied(study: Study, model: vxl2.Model, progress) -> tuple[dict[str, Any], str]:
    """(report, its text) of a study; its picture is drawn."""
    rows = running.run(
        study,
        model,
        Path(_ROWS.value) / f"{study.rows_name}.jsonl",
        _CLIPS.value or study.clips,
        _SEED.value,
        _FOOTAGE.value,
        progress,
    )
    report = tally.report(study, rows, seed=_SEED.value, footage=_FOOTAGE.value, **made_with(model))
    study.draw(Path(_OUT.value) / f"{study.name}.png", report)
    return report, tally.as_text(report)


def costed(model: vxl2.Model, progress) -> tuple[dict[str, Any], str]:
    """The same of what is saved."""
    try:
        frames = [int(count) for count in _FRAMES.value]
    except ValueError:
        raise vxl2.RequestError(f"--frames: {','.join(_FRAMES.value)} are not whole numbers") from None
    if not all(64 <= count <= 2048 for count in frames):
        raise vxl2.RequestError("--frames: from 64 to 2048, at two a second, so that nano knows the timestamps")
    report = cost.measure(model, frames, _ROUNDS.value, progress) | {"made_with": made_with(model)}
    cost.draw(Path(_OUT.value) / f"{cost.NAME}.png", report)
    return report, cost.as_text(report)


def as_json(report: dict[str, Any]) -> str:
    """The report with every innermost list and object on one line."""
    text = json.dumps(report, indent=1)
    for innermost in (r"\[[^\[\]{}]*\]", r"\{[^{}]*\}"):
        text = re.sub(innermost, lambda found: re.sub(r"\n\s*", " ", found[0]), text)
    return text + "\n"


def made_with(model: vxl2.Model) -> dict[str, Any]:
    """What the figures of a report hang on."""
    device = jax.devices()[0]
    return {
        "model": model.fingerprint,
        "dtype": str(model.dtype),
        "jax": jax.__version__,
        "device": device.device_kind,
        "cores": os.cpu_count(),
    }


def main(_) -> int:
    logging.set_verbosity(logging.WARNING)
    names = [*STUDIES, cost.NAME] if _QUESTION.value == "all" else [_QUESTION.value]
    write_texts(Path(_OUT.value), {})  # so that what cannot be a folder is told before the work
    model, console = vxl2.load(_MODEL.value), Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    for name in names:
        began = time.perf_counter()
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(name, total=None)

            def progress(done, total, bar=bar, task=task):
                return bar.update(task, completed=done, total=total)

            report, text = costed(model, progress) if name == cost.NAME else studied(STUDIES[name], model, progress)
        write_texts(Path(_OUT.value), {f"{name}.json": as_json(report)})
        print(f"{text}\n{name}: {time.perf_counter() - began:.0f} s\n", flush=True)
    return 0


if __name__ == "__main__":
    try:
        app.run(main)
    except vxl2.Vxl2Error as error:
        sys.exit(f"open_questions: {error}")
