"""What do weights in 8 and 4 bits, and keys and values in 8 bits, cost in accuracy?

Clips of 96 s are watched and asked by nano in float32, with its weights as int8, W8A8 and int4, with an int8 cache, and
with int8 weights and cache (--settings takes some of these): chunk-based pre-filling,
and as many chunks of one group dense as fit into 62 % of the dense cache's bytes. Every question is asked in every setting.
Frames are rendered once for all settings. Reported too: how many answers are those of float32 word for word, and by how much
the keys and values of the dense level differ from those of float32, relative to their norm.

nano has no outliers as models of several billion parameters do: this shows that quantised weights are computed with as
intended, not what they cost the released model.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import vxl2_jax as vxl2
from experiments.studies import judging, memories, open_question, plots, runner, statistics
from experiments.studies.judging import Asked
from experiments.studies.open_question import Setting
from experiments.studies.study import Result, Study, add_clip_flags, listed
from experiments.synthetic import clips, pictures
from experiments.synthetic.questions import questions
from vxl2_jax.layout import attention_pairs
from vxl2_jax.models.quantised import INT4, INT8, W8A8, WIDE

TITLE = "Weights in 8 and 4 bits, cache in 8 bits (nano, clips of 96 s)"
SETTINGS = {
    WIDE: (WIDE, WIDE),
    "int8": (INT8, WIDE),
    "w8a8": (W8A8, WIDE),
    "int4": (INT4, WIDE),
    "int8-cache": (WIDE, INT8),
    "int8-both": (INT8, INT8),
}
"""By name: the settings of weights and of the cache."""
SECONDS = 96
SHORT, OPEN = ("exists", "first", "when", "what", "count", "between"), ("order",)
ASKED = {SHORT: 32, OPEN: 8}
"""Questions about each clip, by types; those with long answers are batches of their own."""
HOW = Setting(share=62)


def run(args: argparse.Namespace) -> Result:
    """Answer, judge and report."""
    settings = [WIDE, *(name for name in args.settings if name != WIDE)]
    weights = dict.fromkeys(SETTINGS[name][0] for name in settings)
    models = {name: vxl2.load(args.model, "float32", weights=name) for name in weights}
    about = {
        "study": "weights",
        "settings": settings,
        "models": {name: model.fingerprint for name, model in models.items()},
        "seed": args.seed,
        "footage": args.footage,
    }
    found = runner.run(
        args.records,
        about,
        {str(number): number for number in range(args.clips)},
        lambda number: answered(models, settings, number, args.seed, args.footage),
    )
    made = {"seed": args.seed, "footage": args.footage, **open_question.made_with(models[WIDE])}
    report = report_of(found, settings) | {"made_with": made}
    return Result(report, as_markdown(report), partial(draw, report=report))


def draw_clip(number: int, seed: int, footage: str) -> tuple[clips.Clip, list[Asked]]:
    """A clip and its questions."""
    rng = np.random.default_rng([seed, number, 20261130])
    clip = clips.draw_clip(rng, seconds=SECONDS, names=pictures.load()[0], footage=footage)
    return clip, judging.by_type([one for types, count in ASKED.items() for one in questions(rng, clip, count, types)])


def answered(
    models: Mapping[str, vxl2.Model], settings: Sequence[str], number: int, seed: int, footage: str
) -> runner.Record:
    """The record of one clip."""
    clip, asked = draw_clip(number, seed, footage)
    frames = memories.frames_of(clip, models[WIDE].config.vision.image_size)
    seconds, found = np.arange(len(frames), dtype=float), {}
    before: dict[str, np.ndarray] = {}
    tokens = {name: memories.visual_tokens(model, frames) for name, model in models.items()}
    for name in settings:
        weights, cache = SETTINGS[name]
        model = models[weights]
        memory = memories.remember(model, tokens[weights], seconds, HOW.rule, HOW.compression, cache)
        judged = judging.ask(
            model,
            memory,
            asked,
            top_k=memories.interior(memory, HOW.share or 0, HOW.chunk_size),
            relevance=HOW.relevance,
            chunk_size=HOW.chunk_size,
            batch=16,
        )
        kept, causal = attention_pairs(memory.layout, HOW.rule)
        # The slots that every setting has: capacities differ.
        rows = memory.dense_on_device().visual.dequantised(np.float32)
        levels = {
            part: np.asarray(level[:, :, : memory.layout.visual_length], np.float64)
            for part, level in zip("kv", rows, strict=True)
        }
        before = before or levels
        errors = {
            f"error_{part}": float(np.linalg.norm(level - before[part]) / np.linalg.norm(before[part]))
            for part, level in levels.items()
        }
        found[name] = judged | {"pairs": kept, "causal": causal} | errors
    return judging.record_of(asked, found)


def report_of(records: statistics.Records, settings: Sequence[str]) -> dict[str, Any]:
    """The marks of every setting (see `open_question.marks_of`); same_percent: answers that are those of float32;
    error_k, error_v: relative errors of the visual keys and values of the dense level, in the mean over clips."""
    marks = {}
    for name in settings:
        each = [record["settings"] for record in records.values()]
        same = [a == b for one in each for a, b in zip(one[name]["said"], one[WIDE]["said"], strict=True)]
        errors = {part: float(np.mean([one[name][part] for one in each])) for part in ("error_k", "error_v")}
        marks[name] = open_question.marks_of(records, name, WIDE) | {
            "same_percent": round(100 * sum(same) / len(same), 2),
            **{part: round(error, 4) for part, error in errors.items()},
        }
    return {"study": "weights", "title": TITLE, "compared_with": WIDE, "clips": len(records), "marks": marks}


def as_markdown(report: Mapping[str, Any]) -> str:
    """A table of the settings, and one of the types of questions."""
    marks = report["marks"]
    rows = {
        name: {
            "correct (95 %)": mark,
            "points against float32 (95 %)": mark["change"],
            "lost, won": f"{mark['change']['lost']}, {mark['change']['won']}" if mark["change"] else None,
            "same answer": f"{mark['same_percent']} %",
            "error of keys": mark["error_k"],
            "of values": mark["error_v"],
        }
        for name, mark in marks.items()
    }
    by_type = {name: mark["by"] for name, mark in marks.items()}
    return "\n\n".join(
        [
            f"# {report['title']}",
            f"{report['clips']} clips, {marks[WIDE]['questions']} questions in each setting",
            statistics.table("weights", rows),
            statistics.table("weights", by_type),
        ]
    )


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Plot accuracy and change, a row for each type of question."""
    marks = report["marks"]
    rows = {"all": {name: (mark, mark["change"]) for name, mark in marks.items()}}
    for kind in marks[WIDE]["by"]:
        rows[kind] = {name: (mark["by"][kind], mark["change_by"][kind]) for name, mark in marks.items()}
    plots.intervals(path, report, rows)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the study's flags."""
    add_clip_flags(parser, seed=20, clips=120)
    parser.add_argument(
        "--settings", type=listed(_setting), default=list(SETTINGS), metavar="NAME,…", help=f"of {', '.join(SETTINGS)}"
    )


def _setting(name: str) -> str:
    if name not in SETTINGS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SETTINGS)}")
    return name


STUDY = Study(__doc__, run, add_flags)
