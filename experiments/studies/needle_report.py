"""The report of the study `needles`: rates by depth × length, as data, Markdown and a plot.

"exists" is one trial of two questions: yes to the needle, no to a picture that the film never shows; always yes gets
nothing. Questions with numbers outside the model's vocabulary are no trials; they are counted separately.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.studies import plots, statistics
from experiments.synthetic.questions import TOLERANCE_S

KINDS = ("exists", "when", "what")
STAGES = ("render", "watch", "ask")
NOTES = (
    "Intervals are 95 % (Wilson) and assume independent trials; those about one needle are not quite independent.",
    "exists: yes to the needle and no to a picture never shown, both correct; always yes gets 0 %, guessing 25 %.",
    f"when: within {TOLERANCE_S} s of the true start. what: no other picture named.",
    "A needle in several chunks is found if one of them is dense; its rank is that of the best of them.",
    "The first and the last chunk are always dense: a needle there needs no choice.",
    "Peak memory: peak resident memory of the process, without an accelerator's.",
    "Questions with times outside the model's vocabulary are no trials; they are counted separately.",
)


class Trial(NamedTuple):
    """A trial about one needle.

    right: None where the model cannot say the answer; dense: whether a chunk that shows the needle was loaded dense, None
    where the question itself has a number outside the vocabulary; rank: the best of its chunks, None where nothing had to
    be chosen; chance: see `needles.chance`.
    """

    mode: str
    seconds: int
    depth: float
    kind: str
    right: bool | None
    dense: bool | None
    rank: int | None
    chance: float


def trials(records: statistics.Records) -> list[Trial]:
    """All trials of the films that were watched."""
    found = []
    for record in records.values():
        for mode, judged in record.get("settings", {}).items():
            for i, (label, *_) in enumerate(record["asked"]):
                depth, kind = label.split()
                if kind in KINDS:
                    # The question about the absent picture follows "exists".
                    right = judged["right"][i] and (kind != "exists" or judged["right"][i + 1])
                    values = (
                        bool(right) if record["sayable"][i] else None,
                        judged["held"][i] if record["known"][i] else None,
                    )
                    rank = judged["ranks"][i][0] if judged["ranks"][i] else None
                    found.append(Trial(mode, record["seconds"], float(depth), kind, *values, rank, judged["chance"][i]))
    return found


def rates(part: Sequence[Trial]) -> dict[str, Any]:
    """The rates of some trials of one mode, in percent with intervals."""
    said = [trial.right for trial in part if trial.right is not None]
    seen = [trial for trial in part if trial.dense is not None]
    dense = [trial.dense for trial in seen]
    ranks = [trial.rank for trial in seen if trial.rank is not None]
    right, held = statistics.rate(said, 2), statistics.rate(dense, 2)
    return {
        "trials": len(said),
        "right": sum(said),
        "accuracy": right["accuracy"],
        "accuracy_interval": right["interval"],
        "unsayable": len(part) - len(said),
        "questions": len(seen),
        "dense": sum(dense),
        "dense_rate": held["accuracy"],
        "dense_rate_interval": held["interval"],
        "by_lot": round(100 * float(np.mean([trial.chance for trial in seen])), 2) if seen else None,
        "median_rank": float(np.median(ranks)) if ranks else None,
    }


def summarise(records: statistics.Records) -> dict[str, Any]:
    """The report of a run's records: by mode the cells of the grid, and rates by length and by kind of question."""
    found = trials(records)
    lengths, depths = sorted({trial.seconds for trial in found}), sorted({trial.depth for trial in found})

    def report(mode: str) -> dict[str, Any]:
        def picked(**wanted: Any) -> list[Trial]:
            wanted["mode"] = mode
            return [trial for trial in found if all(getattr(trial, name) == value for name, value in wanted.items())]

        def by_kind(**wanted: Any) -> dict[str, Any]:
            return {kind: rates(picked(kind=kind, **wanted)) for kind in KINDS}

        cells = {(seconds, depth): picked(seconds=seconds, depth=depth) for seconds in lengths for depth in depths}
        return {
            "all": rates(picked()),
            "by_kind": by_kind(),
            "by_length": {str(s): rates(picked(seconds=s)) | {"by_kind": by_kind(seconds=s)} for s in lengths},
            "cells": [{"seconds": s, "depth": d, **rates(part)} for (s, d), part in cells.items() if part],
        }

    done = [record for record in records.values() if "settings" in record]

    def spent(length: int, stage: str) -> float:
        return round(sum(record["spent_s"][stage] for record in done if record["seconds"] == length), 1)

    return {
        "lengths": lengths,
        "depths": depths,
        "films": len(done),
        "failures": [{"video": name, "error": one["error"]} for name, one in records.items() if "error" in one],
        "modes": {mode: report(mode) for mode in dict.fromkeys(trial.mode for trial in found)},
        "notes": list(NOTES),
        "peak_bytes": max((record["peak_bytes"] for record in done), default=0),
        "seconds": {str(length): {stage: spent(length, stage) for stage in STAGES} for length in lengths},
    }


def as_markdown(data: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    peak = f"{data['peak_bytes'] / 2**30:.2f} GiB"
    parts = ["# Needles: depth × length", f"{data['films']} films; peak memory {peak}."]
    parts.append("\n".join(f"- {note}" for note in data["notes"]))
    for mode, part in data["modes"].items():
        parts.append(f"## {mode}: {_rate(part['all'], 'accuracy')} of {part['all']['trials']:,} trials correct")
        parts.append(statistics.table("correct, at a depth of", _grid(data, part["cells"], "accuracy")))
        kinds: dict[str, dict] = {kind: {} for kind in (*KINDS, "not in the vocabulary")}
        chosen = _grid(data, part["cells"], "dense_rate") | {"at random, percent": {}, "median rank": {}}
        for length, by in part["by_length"].items():
            for kind in KINDS:
                kinds[kind][f"{length} s"] = _rate(by["by_kind"][kind], "accuracy")
            kinds["not in the vocabulary"][f"{length} s"] = by["unsayable"]
            chosen["at random, percent"][f"{length} s"] = by["by_lot"]
            chosen["median rank"][f"{length} s"] = by["median_rank"]
        parts.append(statistics.table("correct, by question", kinds))
        if part["all"]["dense"] < part["all"]["questions"]:
            parts.append(statistics.table("needle's chunk dense", chosen))
    parts.append(statistics.table("seconds, all films", {f"{s} s": each for s, each in data["seconds"].items()}))
    if data["failures"]:
        failures = {one["video"]: {"why it could not be watched": one["error"]} for one in data["failures"]}
        parts.append(statistics.table("film", failures))
    return "\n\n".join(parts)


def _rate(part: Mapping[str, Any], name: str) -> str:
    return statistics.cell({"accuracy": part[name], "interval": part[f"{name}_interval"]})


def _grid(data: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], name: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {
        f"{depth:g} %": {f"{s} s": "" for s in data["lengths"]} for depth in data["depths"]
    }
    for cell in cells:
        found[f"{cell['depth']:g} %"][f"{cell['seconds']} s"] = _rate(cell, name)
    return found


def draw(path: Path, data: Mapping[str, Any], title: str) -> None:
    """Plot heat maps: accuracy in each mode, and how often the needle's chunk was dense where not all are."""
    panels = [(f"{mode}: correct", part["cells"], "accuracy") for mode, part in data["modes"].items()]
    panels += [
        (f"{mode}: the needle's chunk is dense", part["cells"], "dense_rate")
        for mode, part in data["modes"].items()
        if part["all"]["dense"] < part["all"]["questions"]
    ]
    lengths, depths = data["lengths"], data["depths"]
    size = 1 + (1.6 + 0.62 * len(lengths)) * len(panels), 1.8 + 0.3 * len(depths)
    figure, axes = plots.subplots(len(panels), size, sharey=True)
    for axis, (name, cells, rate) in zip(axes, panels, strict=True):
        values = np.full((len(depths), len(lengths)), np.nan)
        for cell in cells:
            if cell[rate] is not None:
                values[depths.index(cell["depth"]), lengths.index(cell["seconds"])] = cell[rate]
        axis.set_facecolor("#dddddd")
        axis.grid(False)
        image = axis.imshow(values, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            text, colour = "" if np.isnan(value) else f"{value:.0f}", "black" if 15 < value < 85 else "white"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        axis.set_xticks(range(len(lengths)), [f"{seconds:,}" for seconds in lengths])
        axis.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        axis.set(title=name, xlabel="length of the film, seconds")
    axes[0].set_ylabel("depth of the needle, percent")
    figure.colorbar(image, ax=list(axes), label="percent", fraction=0.03)
    plots.save(figure, path, title)
