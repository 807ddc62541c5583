"""How large should a pre-fill block be, and how many earlier blocks should it see?

Blocks of 1 to 8 groups that see 0 to 15 earlier blocks, such that windows of 4, 8, 16 and 32 groups come about in several
ways; each window against the attention pairs that it keeps. The whole cache is dense.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.studies import contents, plots
from experiments.studies.open_question import DENSE, OpenQuestion, Setting
from vxl2_jax.layout import PrefillRule

PREVIOUS = {1: (0, 3, 15), 2: (1, 7), 4: (0, 1, 3, 7), 8: (0, 1, 3)}
"""Block size → numbers of earlier blocks."""
BLOCKS = {
    f"block {block}, previous {before}": PrefillRule(block, before)
    for block, befores in PREVIOUS.items()
    for before in befores
}
ONE, SEVERAL = ("exists", "when", "what"), ("first", "count", "between", "order")
"""Types of questions about one picture, and about several."""


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Plot over the attention pairs kept: accuracy by block size; the change against dense; and accuracy for questions
    about one picture and about several."""
    marks = report["marks"]["as trained"]
    figure, axes = plots.subplots(3, (14, 4.6))

    def lines(part: Callable[[Mapping], Mapping]) -> dict[str, list[tuple[float, plots.Point, str]]]:
        found: dict[str, list] = {}
        for name, rule in BLOCKS.items():
            text = f"{rule.block_size}×{rule.prev_blocks + 1}"
            place = marks[name]["pairs_percent"], plots.point(part(marks[name])), text
            found.setdefault(f"block {rule.block_size}", []).append(place)
        return found

    plots.curves(axes[0], lines(lambda mark: mark), plots.point(marks["dense"]), "dense pre-fill")
    axes[0].set(ylabel="correct, percent (95 %, Wilson)", title="block × blocks seen")
    plots.curves(axes[1], lines(lambda mark: mark["change"]), (0.0, (0.0, 0.0)), "dense pre-fill")
    axes[1].set(ylabel="percentage points against dense (95 %, clustered by clip)")
    for number, (name, kinds) in enumerate({"about one picture": ONE, "about several": SEVERAL}.items(), 1):
        found = sorted((mark["pairs_percent"], _accuracy(mark["by"], kinds)) for mark in marks.values())
        style = {"color": plots.COLOURS[number], "marker": plots.MARKERS[number], "markersize": 4}
        axes[2].plot(*zip(*found, strict=True), label=f"{name}: {', '.join(kinds)}", **style)
    axes[2].set(ylabel="correct, percent")
    axes[2].legend(fontsize=8, frameon=False)
    for axis in axes:
        axis.set(xlabel="attention pairs kept, percent")
    plots.save(figure, path, report["title"])


def _accuracy(by: Mapping[str, Mapping], kinds: Sequence[str]) -> float:
    """Of several types of questions together."""
    parts = [by[kind] for kind in kinds if kind in by]
    return sum(part["accuracy"] * part["questions"] for part in parts) / sum(part["questions"] for part in parts)


QUESTION = OpenQuestion(
    "block_size",
    "Block size and blocks seen in pre-filling (clips of 192 s)",
    settings={"dense": DENSE} | {name: Setting(rule) for name, rule in BLOCKS.items()},
    contents={"as trained": contents.as_trained()},
    draw=draw,
)
STUDY = QUESTION.study(__doc__)
