"""The report of a grounding run: R@1 and mean IoU of both predictors beside what guesses get. Data, Markdown, a picture.

Spans are read from the rows when the report is made, so that another fraction or length needs no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vxl2_jax import plot
from vxl2_jax.evaluation import folder, grounding
from vxl2_jax.evaluation.report import put, table

NAME = "report"
_CURVE = tuple(float(t) for t in np.linspace(0.05, 0.95, 19).round(2))
_COLOURS = {"text": "#1f77b4", "attention": "#c44e52", "random span": "#999999", "whole video": "#555555"}


@dataclass(frozen=True)
class Reading:
    """How spans are made of rows.

    fraction: of the peak, see `grounding.attended_span`; said_s: seconds of a span of which a response names but the
    start, None if it then counts as naming none; random_s: seconds of a random span, and `random_from` says whose mean
    that is; seed: of the bootstrap.
    """

    fraction: float = grounding.FRACTION
    said_s: float | None = None
    random_s: float = 10.0
    random_from: str = ""
    seed: int = 0


def summarise(run: Path, reading: Reading) -> dict[str, Any]:
    """The report of a run's folder. Raises RequestError for a folder without a run, or with damaged rows."""
    told, records = folder.read_run(run), list(folder.records(run).values())
    asked = [(record, one) for record in records for one in record.get("answers", ())]
    owners = [record["video"] for record, _ in asked]
    windows = [one["windows"] for _, one in asked]
    said = [grounding.said_span(one["response"], record["end_s"], reading.said_s) for record, one in asked]
    seen = [grounding.attended_span(one["chunks"], reading.fraction) for _, one in asked]
    ious = {
        name: [grounding.span_iou(span, true) for span, true in zip(spans, windows, strict=True)]
        for name, spans in (("text", said), ("attention", seen))
    }
    ends = [(record["end_s"], true) for (record, _), true in zip(asked, windows, strict=True)]
    guesses = {
        "random span": [grounding.random_ious(reading.random_s, end, true) for end, true in ends],
        "whole video": [grounding.iou([0.0], [end], true) for end, true in ends],
    }
    chunks = [end - start for _, one in asked for start, end, _ in one["chunks"]]
    failures = [{"video": record["video"], "error": record["error"]} for record in records if "error" in record]
    report = {
        "settings": told["settings"],
        "made_with": told["made_with"],
        "reading": vars(reading),
        "complete": len(records) == told["settings"]["videos"],
        "videos": len(records) - len(failures),
        "moments": len(asked),
        "unread": sum(span is None for span in said),
        "failures": failures,
        "predictors": {name: grounding.marks(found, owners, reading.seed) for name, found in ious.items()},
        "chance": {name: grounding.chances(found) for name, found in guesses.items()},
        "curves": {
            "thresholds": _CURVE,
            **{name: _curve([np.asarray([one]) for one in found]) for name, found in ious.items()},
            **{name: _curve(found) for name, found in guesses.items()},
        },
        "chunk_s": round(float(np.median(chunks)), 2) if chunks else None,
        "wall_s": round(sum(record.get("wall_s", 0.0) for record in records), 2),
    }
    return report | {"notes": _notes(report, reading)}


def _curve(ious: Sequence[np.ndarray]) -> list[float]:
    """R@1 in percent at every threshold of the picture."""
    shares = [np.mean([(one >= limit).mean() for one in ious]) if ious else 0.0 for limit in _CURVE]
    return [round(100 * float(share), 2) for share in shares]


def _notes(report: Mapping[str, Any], reading: Reading) -> list[str]:
    alone = "counts as naming none" if reading.said_s is None else f"is taken for {reading.said_s:g} s from there"
    notes = [
        "R@1: Wilson intervals (95 %), which take sentences for independent; mean IoU: bootstrap over videos.",
        f"text: the first span that the response names; only a start {alone}. {report['unread']} responses name no span and "
        "get an IoU of 0.",
        f"attention: the chunks around the one that the question looks at most that get at least {reading.fraction:g} of its "
        f"score; chunks last {report['chunk_s']} s.",
        f"random span: {reading.random_s:.1f} s long, {reading.random_from}; the mean over all places in the video.",
        "Of several true windows the one that fits best counts. Videos that are missing or broken are left out and counted.",
    ]
    if report["settings"]["template"] == grounding.TEMPLATE:
        notes.append("The wording of the question is ours: the published one is not known.")
    return notes


def write(run: Path, reading: Reading) -> dict[str, Any]:
    """Write report.json, report.md and report.png into a run's folder; returns the report."""
    data = summarise(run, reading)
    put(run, {f"{NAME}.json": json.dumps(data, indent=1) + "\n", f"{NAME}.md": as_markdown(data)})
    if data["moments"]:
        draw(run / f"{NAME}.png", data)
    return data


def as_markdown(data: Mapping[str, Any]) -> str:
    """The report for people."""
    settings = data["settings"]
    missing = settings["videos"] - data["videos"] - len(data["failures"])
    lines = [
        f"# {settings['benchmark']}, {settings['mode']}",
        "",
        f"{data['moments']:,} of {settings['moments']:,} sentences about {data['videos']:,} of {settings['videos']:,} videos; "
        f"{len(data['failures'])} videos could not be watched, and {missing} are still to be done. "
        f"{settings['left_out']} sentences of the file have an empty window and are left out.",
        "",
        *(f"- {note}" for note in data["notes"]),
        "",
    ]
    columns = [*(f"r1@{threshold}" for threshold in grounding.THRESHOLDS), "miou"]
    parts = data["predictors"] | data["chance"]
    rows = [[name, *(_shown(part[column]) for column in columns)] for name, part in parts.items()]
    lines += table(["", *(f"R@1, IoU ≥ {threshold:g}" for threshold in grounding.THRESHOLDS), "mean IoU"], rows)
    told = {**settings, **settings["watch"], **settings["ask"], **data["made_with"], "wall_s": data["wall_s"]}
    lines += table(["setting", ""], [[name, value] for name, value in told.items() if name not in ("watch", "ask")])
    if data["failures"]:
        lines += table(
            ["video", "why it could not be watched"], [list(failure.values()) for failure in data["failures"]]
        )
    return "\n".join(lines)


def _shown(part: Mapping[str, Any]) -> str:
    interval = part.get("interval")
    return f"{part['percent']:.1f} %" + (f" ({interval[0]:.1f} – {interval[1]:.1f})" if interval else "")


def draw(path: Path, data: Mapping[str, Any]) -> None:
    """R@1 over the threshold, with intervals where they are counted, and mean IoU. Written whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    curves, parts = data["curves"], data["predictors"] | data["chance"]
    for name, colour in _COLOURS.items():
        style = "-" if name in data["predictors"] else "--"
        left.plot(curves["thresholds"], curves[name], color=colour, linestyle=style, label=name)
    for name, part in data["predictors"].items():
        for threshold in grounding.THRESHOLDS:
            left.plot([threshold] * 2, part[f"r1@{threshold}"]["interval"], color=_COLOURS[name], linewidth=1)
    left.set(xlabel="IoU at least", ylabel="R@1, percent", ylim=(0, 100), xlim=(0, 1))
    left.legend(fontsize=8, frameon=False)
    for place, (name, part) in enumerate(parts.items()):
        mean = part["miou"]["percent"]
        right.bar([place], [mean], color=_COLOURS[name])
        if interval := part["miou"].get("interval"):
            right.plot([place] * 2, interval, color="black", linewidth=1.2)
    right.set_xticks(range(len(parts)), [name.replace(" ", "\n") for name in parts], fontsize=8)
    right.set(ylabel="mean IoU, percent", ylim=(0, 100))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    settings = data["settings"]
    figure.suptitle(f"{settings['benchmark']}, {settings['mode']}, {data['moments']:,} sentences", parse_math=False)
    plot.save(figure, path)
