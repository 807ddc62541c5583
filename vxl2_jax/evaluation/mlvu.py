"""MLVU, dev and test: https://arxiv.org/abs/2406.04264."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vxl2_jax.evaluation.rows import Row, groups_of, identifier, matches, option_letter, seconds, value

NAME = "mlvu"
GROUPS = ("task_type",)


def row(doc: Mapping[str, Any]) -> Row:
    """Parse an annotation row: video_name, question (with its options as lines `(A) …`), answer, task_type.

    Optional: `duration` in seconds, `question_id`. The test split has no `answer`.
    """
    value(doc, "task_type")
    video = value(doc, "video_name")
    return Row(
        answer=option_letter(doc),
        groups=groups_of(doc, GROUPS),
        video=video,
        files=(video,),
        question=value(doc, "question"),
        id=identifier(doc, "question_id"),
        duration_s=seconds(doc, "duration"),
    )


def prompt(row: Row) -> str:
    """The prompt of the original's lmms-eval task. It ends with an open bracket."""
    return f"\n{row.question}\nOnly give the best option.\n\nBest option: ("


def read(response: str) -> str:
    """The character before the first `)`, else the whole stripped response, as in the original's task.

    So "B) a red car" and "(B)" give B, but "B. a red car" gives itself, which matches no answer.
    """
    response = response.strip()
    before, bracket, _ = response.partition(")")
    return before[-1:] if bracket else response


def score(row: Row, response: str) -> bool:
    """Whether `read` gives the correct letter. Case-sensitive."""
    return matches(row, read(response))


def counts(response: str) -> bool:
    """Every response counts, even an empty one."""
    return True
