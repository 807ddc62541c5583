"""LongVideoBench, validation set, videos without their subtitles: https://arxiv.org/abs/2407.15754."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vxl2_jax.errors import RequestError, shown
from vxl2_jax.evaluation.letters import first_letter
from vxl2_jax.evaluation.rows import Row, groups_of, is_unanswered, letter, lettered, matches, seconds, value

NAME = "longvideobench"
GROUPS = ("duration_group", "question_category")

_OPTIONS = tuple(f"option{i}" for i in range(5))


def row(doc: Mapping[str, Any]) -> Row:
    """Parse an annotation row: id, video_path, question, option0 … option4 ("N/A" if unused), correct_choice
    (counted from 0), duration_group, question_category.

    Optional: `duration` in seconds. The test split has no `correct_choice`.
    """
    options = tuple(option for key in _OPTIONS if (option := value(doc, key)) != "N/A")
    correct = None if is_unanswered(doc, "correct_choice") else value(doc, "correct_choice", int)
    if not options:
        raise RequestError("has no options: all are 'N/A'")
    if correct is not None and not 0 <= correct < len(options):
        last = len(options) - 1
        raise RequestError(f"'correct_choice' must be from 0 to {last}, one of the options, not {shown(correct)}")
    value(doc, "duration_group", (int, str))
    value(doc, "question_category")
    video = value(doc, "video_path")
    return Row(
        answer=None if correct is None else letter(correct),
        groups=groups_of(doc, GROUPS),
        video=video,
        files=(video,),
        id=value(doc, "id"),
        question=value(doc, "question"),
        options=options,
        duration_s=seconds(doc, "duration"),
    )


def prompt(row: Row) -> str:
    """The prompt of the original's lmms-eval task. It ends with a newline."""
    question = f"{row.question}\n{lettered(row.options)}"
    return f"{question}\nAnswer with the option's letter from the given choices directly.\n"


def read(response: str) -> str:
    """The first of A–E after the prefixes, or "", where the original's lmms-eval task picks an option at random.

    A letter beyond the row's options is read too, and is wrong.
    """
    return first_letter(response, "ABCDE")


def score(row: Row, response: str) -> bool:
    """Whether `read` gives the correct letter. A response without a letter is wrong; no option is picked at random."""
    return matches(row, read(response))


def counts(response: str) -> bool:
    """Every response counts, even an empty one."""
    return True
