"""Pictures of a run's report, and of a comparison of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vxl2_jax import plot

_BLUE, _GREY, _RED = "#1f77b4", "#c7d5e2", "#c44e52"


def draw_report(path: Path, data: Mapping[str, Any]) -> None:
    """Accuracy overall and by group with intervals; what was saved; time by stage. Written whole or not at all."""
    settings, accuracy = data["settings"], data["accuracy"]
    rows = [("all", accuracy)] + [
        (f"{field.replace('_', ' ')}: {value}", score)
        for field, scores in data["by"].items()
        for value, score in scores.items()
    ]
    figure, axes = _figure(len(rows), 2)
    names = [f"{name}  ({score['total']:,})" for name, score in rows]
    _intervals(axes[0], names, [score["accuracy"] for _, score in rows], [score["interval"] for _, score in rows])
    axes[0].axvline(accuracy["accuracy"], color=_GREY, zorder=0)
    axes[0].set(xlim=(0, 100), xlabel="right, percent, with 95 % intervals (questions in brackets)")
    stages, less = data["time"]["stages_s"], data["saved"]
    axes[1].barh(list(stages), list(stages.values()), color=_BLUE)
    axes[1].invert_yaxis()
    axes[1].set(xlabel="seconds, all processes")
    axes[1].set_title(
        f"saved: {less['attention_percent']} % of attention pairs,\n{less['cache_percent']} % of keys and values",
        fontsize=9,
    )
    figure.suptitle(f"{settings['benchmark']}, {settings['mode']}, {data['made_with']['model']}", parse_math=False)
    plot.save(figure, path)


def draw_comparison(path: Path, data: Mapping[str, Any]) -> None:
    """The paired difference, overall and by group, with intervals. Written whole or not at all."""
    rows = [("all", data)] + [
        (f"{field.replace('_', ' ')}: {value}", part)
        for field, parts in data["by"].items()
        for value, part in parts.items()
    ]
    figure, axes = _figure(len(rows), 1)
    names = [f"{name}  ({part['questions']:,})" for name, part in rows]
    _intervals(axes[0], names, [part["points"] for _, part in rows], [part["interval"] for _, part in rows])
    axes[0].axvline(0, color="black", linewidth=0.8, zorder=0)
    axes[0].set(xlabel="percentage points that B is better, with 95 % intervals (questions in brackets)")
    figure.suptitle(f"A: {data['a']['name']}    B: {data['b']['name']}", parse_math=False, fontsize=10)
    plot.save(figure, path)


def _figure(rows: int, columns: int):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 + 4.5 * columns, 1.8 + 0.24 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False, width_ratios=[2, 1][:columns])[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def _intervals(axis, names: Sequence[str], values: Sequence[float], bounds: Sequence[Sequence[float]]) -> None:
    """Points with intervals, one below the other."""
    for place, (value, (low, high)) in enumerate(zip(values, bounds, strict=True)):
        axis.plot([low, high], [place, place], color=_BLUE, linewidth=1.2)
        axis.plot([value], [place], "o", color=_RED if place == 0 else _BLUE, markersize=4)
    axis.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", color="#eeeeee")
