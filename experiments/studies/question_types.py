"""Which types of questions pay for the savings, including those with open answers?

Uses the records of `halves`, counted by type of question over all lengths of clips: choices (exists, first, count), and
open answers (a name: what, between; a number: when; a list of names: order).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.studies import halves
from experiments.studies.open_question import by_label
from experiments.synthetic.questions import TYPES


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Plot a row for every type."""
    by = report["marks"]["all"][report["compared_with"]]["by"]
    by_label(path, report, "all", {kind: f"{kind} ({by[kind]['questions']})" for kind in TYPES if kind in by})


TITLE = "What the savings cost by type of question (clips of 96, 192 and 384 s)"
QUESTION = replace(halves.QUESTION, name="question_types", title=TITLE, draw=draw, records="halves")
STUDY = QUESTION.study(__doc__)
