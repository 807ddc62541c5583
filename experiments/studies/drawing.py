"""Pictures of studies: dots with intervals, row by row beside the change against dense; and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vxl2_jax import plot

COLOURS = ("#333333", "#1f77b4", "#d95f02", "#e6ab02", "#7570b3", "#2a9d5c", "#c44e52", "#8c6d46")
MARKERS = "osD^vP*X"
LOOKS = {
    "dense": ("#333333", "o"),
    "chunked": ("#1f77b4", "s"),
    "bi-level, 62 %": ("#f2a766", "D"),
    "bi-level, 35 %": ("#d95f02", "D"),
    "both, 62 %": ("#93cba6", "^"),
    "both, 48 %": ("#5fb480", "^"),
    "both, 35 %": ("#1b7f46", "^"),
    "both, 35 %, uniform": ("#e6ab02", "v"),
    "both, 35 %, by lot": ("#c44e52", "v"),
    "both, 35 %, by evidence": ("#7570b3", "*"),
}
"""Colour and marker of a setting, the same in all pictures."""
Point = tuple[float, Sequence[float]]
"""A value and its interval (low, high)."""


def dots(
    path: Path,
    title: str,
    rows: Mapping[str, Mapping[str, Point]],
    changes: Mapping[str, Mapping[str, Point]],
    base: str,
) -> None:
    """Accuracy of every setting, row by row, and beside it its change against the setting `base`.

    rows, changes: row → setting (of LOOKS) → point. Written whole or not at all.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure, axes = new_figure(1, 2, (11, 1.6 + max(0.34, 0.13 * len(names)) * len(rows)), width_ratios=[1, 1])
    for axis, found in ((axes[0], rows), (axes[1], changes)):
        for place, points in enumerate(found.values()):
            for number, name in enumerate(names):
                if name not in points:
                    continue
                (value, (low, high)), (colour, marker) = points[name], LOOKS[name]
                y = place + 0.7 * ((number + 0.5) / len(names) - 0.5)
                axis.plot([low, high], [y, y], color=colour, linewidth=1.1)
                axis.plot(value, y, marker, color=colour, markersize=4, label=None if place else name)
        axis.set_yticks(range(len(found)), list(found))
        axis.set_ylim(len(found) - 0.5, -0.5)
        for place in range(1, len(found)):
            axis.axhline(place - 0.5, color="#eeeeee")
        axis.grid(axis="x", color="#eeeeee")
    axes[1].set_yticks(range(len(changes)), [""] * len(changes))
    axes[1].axvline(0, color="black", linewidth=0.8, zorder=0)
    axes[0].set(xlim=(-2, 102), xlabel="right, percent (95 %, Wilson)")
    axes[1].set_xlabel(f"percentage points against {base} (95 %, by clip)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(names), 4), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    plot.save(figure, path)


def curves(
    axis: Any, lines: Mapping[str, Sequence[tuple[float, Point, str]]], level: Point, name: str, apart: float = 0.0
) -> None:
    """Lines of (x, point, mark beside it) on one axis, above a band: the level of the setting `name`.

    apart: how far lines are moved from each other in x, where their points would hide each other.
    """
    value, (low, high) = level
    axis.axhspan(low, high, color="#dddddd", alpha=0.6, linewidth=0)
    axis.axhline(value, color=COLOURS[0], linewidth=0.9, label=name)
    for number, (label, points) in enumerate(lines.items(), 1):
        points = sorted((x + apart * (number - (len(lines) + 1) / 2), *rest) for x, *rest in points)
        colour, shape = COLOURS[number], MARKERS[number]
        xs, values = [x for x, *_ in points], [point[0] for _, point, _ in points]
        below = [point[0] - point[1][0] for _, point, _ in points]
        above = [point[1][1] - point[0] for _, point, _ in points]
        look = {"color": colour, "marker": shape, "markersize": 4, "linewidth": 1.1, "elinewidth": 0.7}
        axis.errorbar(xs, values, [below, above], label=label, **look)
        for x, point, mark in points:
            axis.annotate(mark, (x, point[0]), (4, 4), textcoords="offset points", fontsize=7, color=colour)
    axis.grid(color="#eeeeee")
    axis.legend(fontsize=8, frameon=False)


def new_figure(rows: int, columns: int, size: tuple[float, float], **options: Any):
    """(figure, its axes in a flat array); options as of `subplots`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes
