"""The plot of a report: a roofline, seconds and peak memory over the length of the video, or a bar for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments.bench.report import OURS, Report, Row
from vxl2_jax import plot

_MARKERS = "osD^vP*Xh<>p"


def draw(report: Report) -> None:
    """Write <name>.png with the other results. Panels without rows are left out."""
    rows = [row for row in report.rows if row.timing]
    if not rows and report.ceilings is None:
        return
    roofline = [row for row in rows if row.flops and row.bytes]
    by_length = [row for row in rows if row.frames and len({other.frames for other in rows}) > 1]
    memory = [row for row in rows if row.frames and row.memory_bytes]
    panels: list[Callable[[Any], None]] = []
    if roofline or not rows:
        panels.append(lambda axis: _roofline(axis, report, roofline))
    if by_length:
        panels.append(lambda axis: _over_frames(axis, by_length, lambda row: row.timing.seconds, "seconds"))
    if memory:
        panels.append(lambda axis: _over_frames(axis, memory, lambda row: row.memory_bytes / 2**20, "peak MiB"))
    if not panels and all(row.frames for row in rows):
        panels.append(lambda axis: _over_frames(axis, rows, lambda row: row.timing.seconds, "seconds"))
    if not panels:
        panels.append(lambda axis: _bars(axis, rows))
    figure = plot.new_figure(7.5 * len(panels), 6.5)
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axis)
        axis.grid(which="major", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    about = report.described
    warning = "" if about["timings"] == "measured" else f"\n{about['timings'].upper()}"
    commit, date = about["commit"] or "unknown", about["date"][:10]
    figure.suptitle(f"{report.name}: {about['device']}, commit {commit}, {date}{warning}", fontsize=10)
    plot.save(figure, report.folder / f"{report.name}.png")


def _roofline(axis: Any, report: Report, rows: list[Row]) -> None:
    """TFLOP/s over operations per byte, under the measured ceilings."""
    top = report.ceilings
    ridge = top.flops / top.bytes
    intensities = [row.flops / row.bytes for row in rows] or [ridge]
    low, high = min(*intensities, ridge) / 3, max(*intensities, ridge) * 3
    roof = [low * top.bytes / 1e12, top.flops / 1e12, top.flops / 1e12]
    axis.plot([low, ridge, high], roof, color="black", linewidth=1.2)
    axis.annotate(f"{top.flops / 1e12:.4g} TFLOP/s", (high, roof[2]), ha="right", va="bottom", fontsize=8)
    axis.annotate(f"{top.bytes / 1e12:.3g} TB/s", (low, roof[0]), ha="left", va="bottom", fontsize=8)
    names, cases = (list(dict.fromkeys(getattr(row, part) for row in rows)) for part in ("name", "case"))
    for row in rows:
        axis.plot(
            row.flops / row.bytes,
            row.flops / row.timing.seconds / 1e12,
            color=f"C{names.index(row.name) % 10}",
            marker=_MARKERS[cases.index(row.case) % len(_MARKERS)],
            fillstyle="full" if row.kind == OURS else "none",
        )
    for number, name in enumerate(names):
        axis.plot([], [], color=f"C{number % 10}", marker="s", linestyle="", label=name)
    for number, case in enumerate(cases):
        marker = _MARKERS[number % len(_MARKERS)]
        axis.plot([], [], color="black", marker=marker, linestyle="", fillstyle="none", label=case)
    axis.set(xlim=(low, high), xlabel="operations per byte", ylabel="TFLOP/s", xscale="log", yscale="log")


def _over_frames(axis: Any, rows: list[Row], value: Callable[[Row], float], label: str) -> None:
    for name in dict.fromkeys((row.name, row.computes) for row in rows):
        points = sorted((row.frames, value(row)) for row in rows if (row.name, row.computes) == name)
        axis.plot(*zip(*points, strict=True), "o-", label=", ".join(name))
    axis.set(xlabel="frames", ylabel=label, xscale="log", yscale="log")


def _bars(axis: Any, rows: list[Row]) -> None:
    """Milliseconds of what the first row is a measurement of, by case and implementation."""
    rows = [row for row in rows if row.computes == rows[0].computes]
    names = list(dict.fromkeys(row.name for row in rows))
    for place, row in enumerate(rows):
        label = row.name if row is next(other for other in rows if other.name == row.name) else None
        axis.barh(place, 1e3 * row.timing.seconds, color=f"C{names.index(row.name) % 10}", label=label)
    axis.set_yticks(range(len(rows)), [row.case for row in rows], fontsize=7)
    axis.invert_yaxis()
    axis.set(xlabel=f"{rows[0].computes}, ms")
