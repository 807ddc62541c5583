"""Plots of a run's report and of a comparison of two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vxl2_jax import plot
from vxl2_jax.text.typed import printable

_BLUE, _GREY, _RED = "#1f77b4", "#c7d5e2", "#c44e52"


def draw_report(path: Path, data: Mapping[str, Any]) -> None:
    """Plot accuracy overall and by group with intervals, savings, and time by stage. Raises RequestError."""
    settings, accuracy = data["settings"], data["accuracy"]
    rows = _rows(accuracy, data["by"])
    figure, axes = _subplots(len(rows), 2)
    labels = [f"{label}  ({score['total']:,})" for label, score in rows]
    _draw_intervals(axes[0], labels, [score["accuracy"] for _, score in rows], [score["interval"] for _, score in rows])
    axes[0].axvline(accuracy["accuracy"], color=_GREY, zorder=0)
    axes[0].set(xlim=(0, 100), xlabel="correct, percent, with 95 % intervals (questions in brackets)")
    stages, saved = data["time"]["stages_s"], data["saved"]
    axes[1].barh(list(stages), list(stages.values()), color=_BLUE)
    axes[1].invert_yaxis()
    axes[1].set(xlabel="seconds, all processes")
    axes[1].set_title(
        f"saved: {saved['attention_percent']} % of attention pairs,\n{saved['cache_percent']} % of keys and values",
        fontsize=9,
    )
    title = f"{settings['benchmark']}, {settings['mode']}, {data['made_with']['model']}"
    figure.suptitle(printable(title), parse_math=False)
    plot.save(figure, path)


def draw_comparison(path: Path, data: Mapping[str, Any]) -> None:
    """Plot the paired difference overall and by group, with intervals. Raises RequestError."""
    rows = _rows(data, data["by"])
    figure, axes = _subplots(len(rows), 1)
    labels = [f"{label}  ({part['questions']:,})" for label, part in rows]
    _draw_intervals(axes[0], labels, [part["points"] for _, part in rows], [part["interval"] for _, part in rows])
    axes[0].axvline(0, color="black", linewidth=0.8, zorder=0)
    axes[0].set(xlabel="B minus A in percentage points, with 95 % intervals (questions in brackets)")
    figure.suptitle(printable(f"A: {data['a']['name']}    B: {data['b']['name']}"), parse_math=False, fontsize=10)
    plot.save(figure, path)


def _rows(overall: Mapping[str, Any], by: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """(label, result) overall and of every group."""
    groups = [
        (f"{field.replace('_', ' ')}: {value}", part) for field, parts in by.items() for value, part in parts.items()
    ]
    return [("all", overall), *groups]


def _subplots(rows: int, columns: int) -> tuple[Any, Sequence[Any]]:
    """A figure, high enough for `rows` rows, and its axes."""
    figure = plot.new_figure(4 + 4.5 * columns, 1.8 + 0.24 * rows)
    axes = figure.subplots(1, columns, squeeze=False, width_ratios=[2, 1][:columns])[0].tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def _draw_intervals(
    axis: Any, labels: Sequence[str], values: Sequence[float], bounds: Sequence[Sequence[float]]
) -> None:
    """Points with intervals, one below the other; the first is highlighted."""
    for y, (value, (low, high)) in enumerate(zip(values, bounds, strict=True)):
        axis.plot([low, high], [y, y], color=_BLUE, linewidth=1.2)
        axis.plot([value], [y], "o", color=_RED if y == 0 else _BLUE, markersize=4)
    axis.set_yticks(range(len(labels)), [printable(label).replace("$", r"\$") for label in labels])
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(axis="x", color="#eeeeee")
