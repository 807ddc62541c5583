"""The report of a grounding run: R@1 and mean IoU of both predictors, compared with guesses. As JSON, Markdown and a plot.

Spans are computed from the records for each report, so that other `SpanOptions` need no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vxl2_jax import plot
from vxl2_jax.evaluation import grounding, run_folder
from vxl2_jax.evaluation.records import GROUNDING
from vxl2_jax.evaluation.report import failed_questions, failures_table, settings_table, table, video_notes, write_texts

NAME = "report"
_CURVE_THRESHOLDS = tuple(float(t) for t in np.linspace(0.05, 0.95, 19).round(2))
_COLOURS = {"text": "#1f77b4", "attention": "#c44e52", "random span": "#999999", "whole video": "#555555"}


@dataclass(frozen=True)
class SpanOptions:
    """How spans are computed from records.

    Attributes:
      fraction: see `grounding.attended_span`.
      length: seconds of a span of which a response names only the start; None: such a response names no span.
      random_length: seconds of a span at random.
      random_source: where `random_length` comes from, for the report.
      seed: of the bootstrap.
    """

    fraction: float = grounding.FRACTION
    length: float | None = None
    random_length: float = 10.0
    random_source: str = ""
    seed: int = 0


def summarise(folder: Path, options: SpanOptions) -> dict[str, Any]:
    """The report of a run's folder. Raises RequestError for a folder without a run, or with damaged records."""
    run, records = run_folder.read_run(folder, GROUNDING), list(run_folder.read_records(folder, GROUNDING).values())
    pairs = [(record, answer) for record in records for answer in record.get("answers", ())]
    videos, durations = [record["video"] for record, _ in pairs], [record["end_s"] for record, _ in pairs]
    windows = [np.asarray(answer["windows"], float) for _, answer in pairs]
    spans = {
        "text": [grounding.answer_span(one["response"], record["end_s"], options.length) for record, one in pairs],
        "attention": [grounding.attended_span(answer["chunks"], options.fraction) for _, answer in pairs],
    }
    ious = {
        name: [grounding.span_iou(span, true) for span, true in zip(found, windows, strict=True)]
        for name, found in spans.items()
    }
    guesses = {
        "random span": [
            grounding.random_ious(options.random_length, duration, true)
            for duration, true in zip(durations, windows, strict=True)
        ],
        "whole video": [
            grounding.iou(np.array([[0.0, duration]]), true) for duration, true in zip(durations, windows, strict=True)
        ],
    }
    chunk_lengths = [end - start for _, answer in pairs for start, end, _ in answer["chunks"]]
    failures = [{"video": record["video"], "error": record["error"]} for record in records if "error" in record]
    report = {
        "settings": run["settings"],
        "made_with": run["made_with"],
        "reading": {
            "fraction": options.fraction,
            "said_s": options.length,
            "random_s": options.random_length,
            "random_from": options.random_source,
            "seed": options.seed,
        },
        "complete": len(records) == run["settings"]["videos"],
        "videos": len(records) - len(failures),
        "moments": len(pairs),
        "unread": sum(span is None for span in spans["text"]),
        "failures": failures,
        "failed_questions": failed_questions(records),
        "video_notes": video_notes(records),
        "predictors": {name: grounding.metrics(found, videos, options.seed) for name, found in ious.items()},
        "chance": {name: grounding.chance_metrics(found) for name, found in guesses.items()},
        "curves": {
            "thresholds": _CURVE_THRESHOLDS,
            **{name: _curve([np.asarray([one]) for one in found]) for name, found in ious.items()},
            **{name: _curve(found) for name, found in guesses.items()},
        },
        "chunk_s": round(float(np.median(chunk_lengths)), 2) if chunk_lengths else None,
        "wall_s": round(sum(record.get("wall_s", 0.0) for record in records), 2),
    }
    return report | {"notes": _notes(report, options)}


def _curve(ious: Sequence[Float[np.ndarray, " _"]]) -> list[float]:
    """R@1 in percent at the thresholds of the plot."""
    shares = [np.mean([(one >= limit).mean() for one in ious]) if ious else 0.0 for limit in _CURVE_THRESHOLDS]
    return [round(100 * float(share), 2) for share in shares]


def _notes(report: Mapping[str, Any], options: SpanOptions) -> list[str]:
    start_only = "names no span" if options.length is None else f"gives a span of {options.length:g} s"
    notes = [
        "R@1: Wilson intervals (95 %), which assume independent sentences; mean IoU: bootstrap over videos.",
        f"text: the first span that the response names; a response that names only a start {start_only}. "
        f"{report['unread']} responses name no span and get an IoU of 0.",
        f"attention: the best-scored chunk and its neighbours with at least {options.fraction:g} of its score; chunks last "
        f"{report['chunk_s']} s.",
        f"random span: {options.random_length:.1f} s long, {options.random_source}; the mean over all places in the video.",
        "Of several true windows the best match counts. Missing and broken videos, and sentences that cannot be asked, are left out and "
        "listed.",
    ]
    if report["settings"]["template"] == grounding.TEMPLATE:
        notes.append("The wording of the question is ours: the published one is not known.")
    return notes


def write(folder: Path, options: SpanOptions) -> dict[str, Any]:
    """Write report.json, report.md and report.png into a run's folder. Returns the report. Raises RequestError."""
    data = summarise(folder, options)
    write_texts(folder, {f"{NAME}.json": json.dumps(data, indent=1) + "\n", f"{NAME}.md": as_markdown(data)})
    if data["moments"]:
        draw(folder / f"{NAME}.png", data)
    return data


def as_markdown(data: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    settings = data["settings"]
    missing = settings["videos"] - data["videos"] - len(data["failures"])
    lines = [
        f"# {settings['benchmark']}, {settings['mode']}",
        "",
        f"{data['moments']:,} of {settings['moments']:,} sentences about {data['videos']:,} of {settings['videos']:,} videos; "
        f"{len(data['failures'])} videos could not be watched, and {missing} are still to be done. "
        f"{settings['left_out']} sentences with an empty window are left out.",
        "",
        *(f"- {note}" for note in data["notes"]),
        "",
    ]
    columns = [*(f"r1@{threshold}" for threshold in grounding.THRESHOLDS), "miou"]
    parts = data["predictors"] | data["chance"]
    rows = [[name, *(_percent(part[column]) for column in columns)] for name, part in parts.items()]
    lines += table(["", *(f"R@1, IoU ≥ {threshold:g}" for threshold in grounding.THRESHOLDS), "mean IoU"], rows)
    lines += settings_table(
        {**settings, **settings["watch"], **settings["ask"], **data["made_with"], "wall_s": data["wall_s"]}
    )
    lines += failures_table(data)
    return "\n".join(lines)


def _percent(part: Mapping[str, Any]) -> str:
    interval = part.get("interval")
    return f"{part['percent']:.1f} %" + (f" ({interval[0]:.1f} – {interval[1]:.1f})" if interval else "")


def draw(path: Path, data: Mapping[str, Any]) -> None:
    """Plot R@1 over the threshold, and mean IoU, with the predictors' intervals. Raises RequestError."""
    figure = plot.new_figure(10.0, 4.0)
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
    for x, (name, part) in enumerate(parts.items()):
        right.bar([x], [part["miou"]["percent"]], color=_COLOURS[name])
        if interval := part["miou"].get("interval"):
            right.plot([x] * 2, interval, color="black", linewidth=1.2)
    right.set_xticks(range(len(parts)), [name.replace(" ", "\n") for name in parts], fontsize=8)
    right.set(ylabel="mean IoU, percent", ylim=(0, 100))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    settings = data["settings"]
    figure.suptitle(f"{settings['benchmark']}, {settings['mode']}, {data['moments']:,} sentences", parse_math=False)
    plot.save(figure, path)
