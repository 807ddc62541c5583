"""Plots of studies: intervals row by row beside the change against a base, and curves over a quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vxl2_jax import plot

COLOURS = ("#333333", "#1f77b4", "#d95f02", "#e6ab02", "#7570b3", "#2a9d5c", "#c44e52", "#8c6d46")
MARKERS = "osD^vP*X"
Point = tuple[float, Sequence[float]]
"""A value and its interval (low, high)."""


def point(part: Mapping[str, Any]) -> Point:
    """The value and the interval of a rate or a change (see `statistics`)."""
    return next(part[name] for name in ("accuracy", "percent", "points") if name in part), part["interval"]


def intervals(
    path: Path, report: Mapping[str, Any], rows: Mapping[str, Mapping[str, tuple[dict, dict | None]]]
) -> None:
    """Plot the accuracy of every setting, row by row, and beside it the change against the first setting.

    report: its title and "compared_with". rows: row → setting → (rate, change or None).
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    figure, axes = subplots(2, (11, 1.6 + max(0.34, 0.13 * len(names)) * len(rows)))
    for which, axis in enumerate(axes):
        for place, parts in enumerate(rows.values()):
            for number, name in enumerate(names):
                if name in parts and parts[name][which]:
                    value, (low, high) = point(parts[name][which])
                    y = place + 0.7 * ((number + 0.5) / len(names) - 0.5)
                    axis.plot([low, high], [y, y], color=COLOURS[number], linewidth=1.1)
                    label = None if place else name
                    axis.plot(value, y, MARKERS[number], color=COLOURS[number], markersize=4, label=label)
        axis.set_yticks(range(len(rows)), ["" if which else row for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(False, axis="y")
        for place in range(1, len(rows)):
            axis.axhline(place - 0.5, color="#eeeeee")
    axes[1].axvline(0, color="black", linewidth=0.8, zorder=1)
    axes[0].set(xlim=(-2, 102), xlabel="correct, percent (95 %, Wilson)")
    axes[1].set_xlabel(f"percentage points against {report['compared_with']} (95 %, clustered by clip)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(names), 4), fontsize=8, frameon=False)
    save(figure, path, report["title"])


def curves(
    axis: Any,
    lines: Mapping[str, Sequence[tuple[float, Point, str]]],
    level: Point | None,
    name: str,
    apart: float = 0.0,
) -> None:
    """Plot lines of (x, point, annotation), above a band with the `level` of the setting `name` if there is one.

    apart: the distance in x between the lines, so that points do not hide each other.
    """
    if level:
        axis.axhspan(*level[1], color="#dddddd", alpha=0.6, linewidth=0)
        axis.axhline(level[0], color=COLOURS[0], linewidth=0.9, label=name)
    for number, (label, points) in enumerate(lines.items(), 1):
        points = sorted((x + apart * (number - (len(lines) + 1) / 2), *rest) for x, *rest in points)
        style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4, "linewidth": 1.1}
        below = [value - low for _, (value, (low, _)), _ in points]
        above = [high - value for _, (value, (_, high)), _ in points]
        xs, ys = [x for x, *_ in points], [value for _, (value, _), _ in points]
        axis.errorbar(xs, ys, [below, above], label=label, elinewidth=0.7, **style)
        for x, y, (_, _, text) in zip(xs, ys, points, strict=True):
            axis.annotate(text, (x, y), (4, 4), textcoords="offset points", fontsize=7, color=COLOURS[number])
    axis.legend(fontsize=8, frameon=False, loc="lower right")


def subplots(columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """(figure, its axes side by side); options as of `Figure.subplots`."""
    figure = plot.new_figure(*size)
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.grid(color="#eeeeee")
        axis.set_axisbelow(True)
    return figure, axes


def save(figure: Any, path: Path, title: str) -> None:
    """Write the figure atomically under a title."""
    figure.suptitle(title, parse_math=False, fontsize=11)
    plot.save(figure, path)
