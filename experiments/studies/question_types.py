"""Which kinds of questions pay for the savings, open answers included?

The answers are those of the study `halves`, counted by type of question over all lengths of clips: choices (exists,
first, count), and open answers (a name: what, between; a number: when; a list of names: order).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from experiments.studies import drawing, halves, tally
from experiments.synthetic.questions import TYPES


def draw(path: Path, report: dict) -> None:
    """A row for every type."""
    marks = report["marks"]["all"]
    asked = next(iter(marks.values()))["by"]
    names = {kind: f"{kind} ({asked[kind]['questions']})" for kind in TYPES if kind in asked}
    drawing.dots(path, report["title"], *tally.by_label(marks, names), report["compared_with"])


STUDY = replace(
    halves.STUDY,
    name="question_types",
    title="What the savings cost by type of question (clips of 96, 192 and 384 s)",
    draw=draw,
    rows="halves",
)
