"""How large should a pre-fill block be, and how many blocks before it should be seen?

Blocks of 1 to 8 groups and 0 to 15 blocks before, so chosen that windows of 4, 8, 16 and 32 groups come about in
several ways; every window against the attention pairs it keeps. The whole cache is dense.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.studies import contents, drawing, tally
from experiments.studies.study import DENSE, Setting, Study
from vxl2_jax import plot
from vxl2_jax.layout import PrefillRule

PREVIOUS = {1: (0, 3, 15), 2: (1, 7), 4: (0, 1, 3, 7), 8: (0, 1, 3)}
"""Block size → blocks before it."""
ONE, SEVERAL = ("exists", "when", "what"), ("first", "count", "between", "order")
"""Types of questions about one picture, and about several."""


def _name(block: int, before: int) -> str:
    return f"block {block}, previous {before}"


def draw(path: Path, report: dict) -> None:
    """Over the attention pairs kept: accuracy, a line for each block size; the paired change against dense; and
    accuracy at questions about one picture and about several."""
    marks = report["marks"]["as trained"]
    figure, axes = drawing.new_figure(1, 3, (14, 4.6))

    def lines(value: Callable[[dict], dict]) -> dict:
        return {
            f"block {block}": [
                (mark["pairs_percent"], tally.point(value(mark)), f"{block}×{before + 1}")
                for before in befores
                for mark in [marks[_name(block, before)]]
            ]
            for block, befores in PREVIOUS.items()
        }

    drawing.curves(axes[0], lines(lambda mark: mark), tally.point(marks["dense"]), "dense pre-fill")
    axes[0].set(ylabel="right, percent (95 %, Wilson)")
    axes[0].set_title("marks: block × blocks seen", fontsize=9)
    drawing.curves(axes[1], lines(lambda mark: mark["change"]), (0.0, (0.0, 0.0)), "dense pre-fill")
    axes[1].set(ylabel="percentage points against dense (95 %, by clip)")
    for number, (name, kinds) in enumerate({"about one picture": ONE, "about several": SEVERAL}.items(), 1):
        found = sorted((mark["pairs_percent"], _accuracy(mark["by"], kinds)) for mark in marks.values())
        look = {"color": drawing.COLOURS[number], "marker": drawing.MARKERS[number], "markersize": 4}
        axes[2].plot(*zip(*found, strict=True), label=name, **look)
        axes[2].set(ylabel="right, percent")
    axes[2].set_title(f"{', '.join(ONE)}; {', '.join(SEVERAL)}", fontsize=9)
    axes[2].legend(fontsize=8, frameon=False)
    axes[2].grid(color="#eeeeee")
    for axis in axes:
        axis.set(xlabel="attention pairs kept, percent")
    figure.suptitle(report["title"], fontsize=11)
    plot.save(figure, path)


def _accuracy(by: Mapping[str, Mapping], kinds: Sequence[str]) -> float:
    """Of several types together."""
    parts = [by[kind] for kind in kinds if kind in by]
    return sum(part["accuracy"] * part["questions"] for part in parts) / sum(part["questions"] for part in parts)


STUDY = Study(
    name="block_size",
    title="Block size and blocks seen in pre-filling (clips of 192 s)",
    settings={"dense": DENSE}
    | {
        _name(block, before): Setting(PrefillRule(block, before))
        for block, befores in PREVIOUS.items()
        for before in befores
    },
    contents={"as trained": contents.as_trained()},
    clips=8,
    draw=draw,
)
