"""MLVU, dev and test: https://arxiv.org/abs/2406.04264."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vxl2_jax.evaluation.rows import Row, groups_of, matches, option_letter, value

NAME = "mlvu"
GROUPS = ("task_type",)


def row(doc: Mapping[str, Any]) -> Row:
    """An annotation row: video_name, question (its options inside, one `(A) …` a line), answer, task_type.

    `duration`, in seconds, may be missing.
    """
    value(doc, "task_type")
    video = value(doc, "video_name")
    return Row(
        answer=option_letter(doc),
        groups=groups_of(doc, GROUPS),
        video=video,
        files=(video,),
        question=value(doc, "question"),
        duration_s=float(value(doc, "duration", (int, float))) if doc.get("duration") is not None else None,
    )


def prompt(row: Row) -> str:
    """As the original's lmms-eval task asks: it opens the bracket that the model is to close."""
    return f"\n{row.question}\nOnly give the best option.\n\nBest option: ("


def read(response: str) -> str:
    """The character before the first `)`, or else the whole response, stripped: as the original's task reads it.

    So "B) a red car" and "(B)" read as B, but "B. a red car" as itself, which no answer equals.
    """
    response = response.strip()
    before, bracket, _ = response.partition(")")
    return before[-1:] if bracket else response


def score(row: Row, response: str) -> bool:
    """Whether the response is read as the right letter; case matters."""
    return matches(row, read(response))


def counts(response: str) -> bool:
    """Every response counts, empty ones too."""
    return True
