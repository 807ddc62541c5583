"""From rows about needles to a grid of depth × length: rates with intervals, as data, Markdown and a picture.

"exists" is one trial with two questions: yes to the needle, no to a picture that the film never shows; always saying yes
gets nothing. Numbers that the model's vocabulary lacks make no trial: they are counted beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.synthetic.questions import TOLERANCE_S
from vxl2_jax import plot
from vxl2_jax.evaluation import run_folder
from vxl2_jax.evaluation.intervals import wilson
from vxl2_jax.evaluation.report import table, write_texts

KINDS = ("exists", "when", "what")
STAGES = ("render", "watch", "ask")
NOTES = (
    "Intervals are 95 % (Wilson) and take trials for independent, which those about one needle are not quite.",
    "exists: yes to the needle and no to a picture never shown, both right; always saying yes gets 0 %, guessing 25 %.",
    f"when: within {TOLERANCE_S} s of the true start. what: no other picture named.",
    "A needle that lies in several chunks is found where one of them is dense; its rank is that of the best of them.",
    "The first and the last chunk are always dense: where a needle lies there, nothing had to be chosen.",
    "Peak memory: the most that a process has held until a film was done, without that of an accelerator.",
    "Times that the model's vocabulary lacks are no trials; how many there were is told.",
)


@dataclass(frozen=True)
class Trial:
    """right: None where the model cannot say it; dense: whether a chunk that shows the needle was loaded dense, None
    where the question itself holds a number that the model does not know; rank, lot: see `needles.judge`."""

    mode: str
    seconds: int
    depth: float
    kind: str
    right: bool | None
    dense: bool | None
    rank: int
    lot: float


def trials(records: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """All trials of the rows of a run, those that could not be watched left out."""
    found = []
    for record in records:
        answers = record.get("answers", ())
        refused = {(one["mode"], one["needle"]): one["right"] for one in answers if one["kind"] == "absent"}
        for one in answers:
            if one["kind"] in KINDS:
                right = one["right"] and (one["kind"] != "exists" or refused[one["mode"], one["needle"]])
                found.append(
                    Trial(
                        one["mode"],
                        record["seconds"],
                        one["depth"],
                        one["kind"],
                        right if one["sayable"] else None,
                        one["dense"] if one["known"] else None,
                        one["rank"],
                        one["lot"],
                    )
                )
    return found


def rates(part: Sequence[Trial]) -> dict[str, Any]:
    """What some trials of one mode amount to, rates and intervals in percent."""
    said = [trial.right for trial in part if trial.right is not None]
    seen = [trial for trial in part if trial.dense is not None]
    ranks = [trial.rank for trial in seen if trial.rank]
    found = {"trials": len(said), "right": sum(said), **_rate("accuracy", sum(said), len(said))}
    found["unsayable"] = len(part) - len(said)
    loaded = {"questions": len(seen), "dense": sum(trial.dense for trial in seen)}
    lot = round(100 * float(np.mean([trial.lot for trial in seen])), 2) if seen else None
    loaded |= _rate("dense_rate", loaded["dense"], len(seen)) | {"by_lot": lot}
    return found | loaded | {"median_rank": float(np.median(ranks)) if ranks else None}


def _rate(name: str, count: int, total: int) -> dict[str, Any]:
    low, high = wilson(count, total)
    return {name: round(100 * count / total, 2) if total else None, f"{name}_interval": [round(low, 1), round(high, 1)]}


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The report of a run's rows: by mode the grid's cells, and sums by length and by kind of question."""
    found = trials(records)
    modes = list(dict.fromkeys(trial.mode for trial in found))
    lengths, depths = sorted({trial.seconds for trial in found}), sorted({trial.depth for trial in found})

    def report(mode: str) -> dict[str, Any]:
        own = [trial for trial in found if trial.mode == mode]

        def picked(**wanted: Any) -> list[Trial]:
            return [trial for trial in own if all(getattr(trial, name) == value for name, value in wanted.items())]

        return {
            "all": rates(own),
            "by_kind": {kind: rates(picked(kind=kind)) for kind in KINDS},
            "by_length": {
                str(seconds): rates(picked(seconds=seconds))
                | {"by_kind": {kind: rates(picked(seconds=seconds, kind=kind)) for kind in KINDS}}
                for seconds in lengths
            },
            "cells": [
                {"seconds": seconds, "depth": depth, **rates(part)}
                for seconds in lengths
                for depth in depths
                if (part := picked(seconds=seconds, depth=depth))
            ],
        }

    done = [record for record in records if "answers" in record]
    return {
        "lengths": lengths,
        "depths": depths,
        "films": len(done),
        "failures": [{"video": r["video"], "error": r["error"]} for r in records if "error" in r],
        "modes": {mode: report(mode) for mode in modes},
        "notes": list(NOTES),
        "peak_bytes": max((record["peak_bytes"] for record in done), default=0),
        "seconds": {
            str(length): {
                stage: round(sum(record["spent_s"][stage] for record in done if record["seconds"] == length), 1)
                for stage in STAGES
            }
            for length in lengths
        },
    }


def write(run: Path) -> dict[str, Any]:
    """Write report.json, report.md and report.png into a run's folder; returns the report."""
    told = run_folder.read_run(run)
    data = {**told, **summarise(list(run_folder.read_records(run).values()))}
    write_texts(run, {"report.json": json.dumps(data, indent=1) + "\n", "report.md": as_markdown(data)})
    if data["modes"]:
        draw(run / "report.png", data, f"needles, {told['made_with']['model']}")
    return data


def as_markdown(data: Mapping[str, Any]) -> str:
    """The report for people."""
    peak = f"{data['peak_bytes'] / 2**30:.2f} GiB"
    lines = ["# Needles: depth × length", "", f"{data['films']} films; peak memory {peak}.", ""]
    lines += [*(f"- {note}" for note in data["notes"]), ""]
    lengths = [f"{seconds:,} s" for seconds in data["lengths"]]
    for mode, part in data["modes"].items():
        lines += [f"## {mode}: {shown(part['all'], 'accuracy')} of {part['all']['trials']:,} trials right", ""]
        lines += table(["right, at a depth of", *lengths], _grid(data, part["cells"], "accuracy"))
        rows = [
            [kind, *(shown(by["by_kind"][kind], "accuracy") for by in part["by_length"].values())] for kind in KINDS
        ]
        rows.append(["cannot be said", *(by["unsayable"] for by in part["by_length"].values())])
        lines += table(["right, by question", *lengths], rows)
        if part["all"]["dense"] < part["all"]["questions"]:
            rows = _grid(data, part["cells"], "dense_rate")
            rows.append(["by lot", *(_percent(by["by_lot"]) for by in part["by_length"].values())])
            middle = (by["median_rank"] for by in part["by_length"].values())
            rows.append(["median rank", *("–" if rank is None else rank for rank in middle)])
            lines += table(["needle's chunk dense", *lengths], rows)
    spent = [[stage, *(f"{by[stage]:,.1f}" for by in data["seconds"].values())] for stage in STAGES]
    lines += table(["seconds, all films", *lengths], spent)
    if data["failures"]:
        lines += table(
            ["film", "why it could not be watched"], [list(failure.values()) for failure in data["failures"]]
        )
    return "\n".join(lines)


def shown(part: Mapping[str, Any], name: str) -> str:
    """A rate with its interval."""
    low, high = part[f"{name}_interval"]
    return "–" if part[name] is None else f"{part[name]:.0f} % ({low:.0f} – {high:.0f})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} %"


def _grid(data: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], name: str) -> list[list[str]]:
    by_place = {(cell["seconds"], cell["depth"]): cell for cell in cells}
    return [
        [f"{depth:g} %", *(shown(by_place[s, depth], name) if (s, depth) in by_place else "" for s in data["lengths"])]
        for depth in data["depths"]
    ]


def draw(path: Path, data: Mapping[str, Any], title: str) -> None:
    """Heat maps: what was right in each mode, and how often the needle's chunk was dense where not all are. Written whole
    or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(f"{mode}: right", part["cells"], "accuracy") for mode, part in data["modes"].items()]
    panels += [
        (f"{mode}: the needle's chunk is dense", part["cells"], "dense_rate")
        for mode, part in data["modes"].items()
        if part["all"]["dense"] < part["all"]["questions"]
    ]
    lengths, depths = data["lengths"], data["depths"]
    wide = 1.6 + 0.62 * len(lengths)
    figure = Figure(figsize=(1 + wide * len(panels), 1.8 + 0.3 * len(depths)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, cells, rate) in zip(axes, panels, strict=True):
        values = np.full((len(depths), len(lengths)), np.nan)
        for cell in cells:
            if cell[rate] is not None:
                values[depths.index(cell["depth"]), lengths.index(cell["seconds"])] = cell[rate]
        axis.set_facecolor("#dddddd")
        image = axis.imshow(values, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            told, colour = "" if np.isnan(value) else f"{value:.0f}", "black" if 15 < value < 85 else "white"
            axis.text(column, row, told, ha="center", va="center", fontsize=8, color=colour)
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(lengths)), [f"{seconds:,}" for seconds in lengths], fontsize=8)
        axis.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths], fontsize=8)
        axis.set_xlabel("length of the film, seconds")
    axes[0].set_ylabel("depth of the needle, percent")
    figure.colorbar(image, ax=axes, label="percent", fraction=0.03)
    figure.suptitle(title, parse_math=False)
    plot.save(figure, path)
