"""The open questions about the method: clips of some kinds, each watched under several rules and asked in several settings.

Clip i of every kind comes from the same random stream, in all settings. It is rendered and goes through the vision half
once; frames are given as arrays, without a video file, with real footage in the background that training did not use.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import vxl2_jax as vxl2
from experiments.studies import judging, memories, plots, runner, statistics
from experiments.studies.contents import Draw
from experiments.studies.judging import Asked
from experiments.studies.study import Result, Study, add_clip_flags
from vxl2_jax.layout import PrefillRule, attention_pairs


@dataclass(frozen=True)
class Setting:
    """How a clip is watched and asked about.

    Attributes:
      rule: chunk-based pre-filling; `prev_blocks` None is dense.
      share: percent of the dense cache's bytes that may be loaded: besides the first and the last, as many chunks are
        chosen as fit. None: the whole cache is dense.
      relevance: a scorer of `vxl2_jax.relevance`; RANDOM (drawn for each question); or EVIDENCE (the chunks that the
        answer rests on, which no scorer can know; the others at random).
      chunk_size: groups per chunk.
      compression: visual tokens pooled into one in the other chunks.
    """

    rule: PrefillRule = PrefillRule(4, 3)
    share: int | None = None
    relevance: str = "attention"
    chunk_size: int = 1
    compression: int = 8


RANDOM, EVIDENCE = "drawn at random", "evidence"
DENSE, CHUNKED, AT_35 = Setting(PrefillRule(4, None)), Setting(), Setting(share=35)
RANDOM_35, EVIDENCE_35 = replace(AT_35, relevance=RANDOM), replace(AT_35, relevance=EVIDENCE)


def by_content(path: Path, report: Mapping[str, Any]) -> None:
    """Plot a row for every kind of clips."""
    rows = {
        kind: {name: (mark, mark["change"]) for name, mark in marks.items()} for kind, marks in report["marks"].items()
    }
    plots.intervals(path, report, rows)


def by_label(path: Path, report: Mapping[str, Any], kind: str, names: Mapping[str, str]) -> None:
    """Plot a row for every label of one kind of clips, under the names given."""
    marks = report["marks"][kind]
    rows = {
        name: {setting: (mark["by"][label], mark["change_by"][label]) for setting, mark in marks.items()}
        for label, name in names.items()
    }
    plots.intervals(path, report, rows)


@dataclass(frozen=True)
class OpenQuestion:
    """One open question.

    Attributes:
      name, title: of the report and its plot.
      settings: by name; the first is what the others are compared with.
      contents: how clips of each kind are drawn.
      clips: how many of each kind by default.
      draw: writes the plot of a report.
      records: the study whose records are used, if it is another one.
    """

    name: str
    title: str
    settings: Mapping[str, Setting]
    contents: Mapping[str, Draw]
    clips: int = 8
    draw: Callable[[Path, Mapping[str, Any]], None] = by_content
    records: str = ""

    def study(self, help: str) -> Study:
        return Study(help, partial(run, self), partial(add_clip_flags, seed=11, clips=self.clips))


def run(question: OpenQuestion, args: argparse.Namespace) -> Result:
    """Answer, judge and report."""
    model = vxl2.load(args.model)
    about = {
        "study": question.records or question.name,
        "model": model.fingerprint,
        "seed": args.seed,
        "footage": args.footage,
        "settings": {name: asdict(setting) for name, setting in question.settings.items()},
        "contents": list(question.contents),
    }
    clips = {f"{kind}/{number}": (kind, number) for number in range(args.clips) for kind in question.contents}
    found = runner.run(
        args.records, about, clips, lambda clip: answered(model, question, *clip, args.seed, args.footage)
    )
    made = {"seed": args.seed, "footage": args.footage, **made_with(model)}
    report = report_of(question, found) | {"made_with": made}
    return Result(report, as_markdown(report), partial(question.draw, report=report))


def answered(
    model: vxl2.Model, question: OpenQuestion, kind: str, number: int, seed: int, footage: str
) -> runner.Record:
    """The record of one clip."""
    clip, asked = question.contents[kind](np.random.default_rng([seed, number, 20261121]), footage)
    frames = memories.frames_of(clip, model.config.vision.image_size)
    tokens, seconds = memories.visual_tokens(model, frames), np.arange(len(frames), dtype=float)
    watched: dict[PrefillRule, vxl2.VideoMemory] = {}
    found = {}
    for name, setting in question.settings.items():
        if setting.rule not in watched:
            watched[setting.rule] = memories.remember(model, tokens, seconds, setting.rule, setting.compression)
        memory = watched[setting.rule]
        if setting.compression != memory.compression:
            memory = memory.with_compression(setting.compression)
        size = setting.chunk_size
        top_k = None if setting.share is None else memories.interior(memory, setting.share, size)
        relevance: Any = setting.relevance
        if relevance in (RANDOM, EVIDENCE):
            rng = np.random.default_rng([seed, number, 20261122])
            relevance = scores_of(asked, relevance, size, memory.layout.chunks(size), rng)
        judged = judging.ask(model, memory, asked, top_k=top_k, relevance=relevance, chunk_size=size)
        kept, causal = attention_pairs(memory.layout, setting.rule)
        found[name] = judged | {"pairs": kept, "causal": causal}
    return judging.record_of(asked, found)


def scores_of(
    asked: Sequence[Asked], relevance: str, chunk_size: int, chunks: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Scores [chunks] for each question, at random; with EVIDENCE below those of the evidence's chunks.

    Questions with the same text have the same scores, those of the last one.
    """
    scores = {}
    for _, question in asked:
        events = judging.evidence_of(question, chunk_size, chunks) if relevance == EVIDENCE else []
        scores[question.question] = judging.known(events, rng.random(chunks))
    return [scores[question.question] for _, question in asked]


def made_with(model: vxl2.Model) -> dict[str, Any]:
    """The model and the machine that figures depend on."""
    return {"model": model.fingerprint, "dtype": str(model.dtype), **made_on()}


def made_on() -> dict[str, Any]:
    """The software and the machine that figures depend on."""
    return {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "cores": os.cpu_count()}


def report_of(question: OpenQuestion, records: statistics.Records) -> dict[str, Any]:
    """Marks of every kind of clips, and of "all" where there are several, in every setting (see `marks_of`)."""
    kinds = {
        kind: {key: record for key, record in records.items() if key.rpartition("/")[0] == kind}
        for kind in question.contents
    }
    if len(kinds) > 1:
        kinds["all"] = dict(records)
    names, base = list(question.settings), next(iter(question.settings))
    return {
        "study": question.name,
        "title": question.title,
        "compared_with": base,
        "clips": {kind: len(found) for kind, found in kinds.items()},
        "marks": {kind: {name: marks_of(found, name, base) for name in names} for kind, found in kinds.items()},
    }


def marks_of(records: statistics.Records, name: str, base: str) -> dict[str, Any]:
    """The marks of a setting.

    accuracy, interval, questions, and "by" label the same; "change" against the setting `base` (None for itself), and
    "change_by" label; chosen: the most chunks chosen in a clip; cache_percent, pairs_percent: of the dense key/value
    bytes, and of the dense attention pairs in pre-filling; held: of the questions with evidence, the percent for which
    each event had a dense chunk, and "held_by" label.
    """
    labels = list(dict.fromkeys(label for record in records.values() for label, *_ in record["asked"]))
    right = {label: statistics.values(records, name, label=label) for label in (None, *labels)}
    before = {label: statistics.values(records, base, label=label) for label in right}
    rates = {label: statistics.rate(statistics.flat(found)) for label, found in right.items()}
    changes = {label: None if name == base else statistics.change(before[label], right[label]) for label in right}
    held = {label: _held(statistics.values(records, name, "held", label)) for label in right}
    return {
        **rates.pop(None),
        "by": rates,
        "change": changes.pop(None),
        "change_by": changes,
        "chosen": max(record["settings"][name]["chosen"] for record in records.values()),
        "cache_percent": round(statistics.percent_of(records, name, "loaded", "dense"), 1),
        "pairs_percent": round(statistics.percent_of(records, name, "pairs", "causal"), 1),
        "held": held.pop(None),
        "held_by": held,
    }


def _held(by_clip: Mapping[str, Sequence[int | None]]) -> float | None:
    found = [one for one in statistics.flat(by_clip) if one is not None]
    return round(100 * sum(found) / len(found), 1) if found else None


def as_markdown(report: Mapping[str, Any]) -> str:
    """A table for every kind of clips."""
    parts = [f"# {report['title']}"]
    for kind, marks in report["marks"].items():
        rows = {
            name: {
                "correct (95 %)": mark,
                f"points against {report['compared_with']} (95 %)": mark["change"],
                "percent of attention pairs": mark["pairs_percent"],
                "of key/value bytes": mark["cache_percent"],
                "of questions with every event dense": mark["held"],
            }
            for name, mark in marks.items()
        }
        asked = next(iter(marks.values()))["questions"]
        parts.append(f"{kind}: {report['clips'][kind]} clips, {asked} questions")
        parts.append(statistics.table("setting", rows))
    return "\n\n".join(parts)
