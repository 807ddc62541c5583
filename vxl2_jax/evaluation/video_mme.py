"""Video-MME, with and without subtitles: https://arxiv.org/abs/2405.21075."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vxl2_jax.evaluation.letters import PREFIXES, first_letter
from vxl2_jax.evaluation.rows import Row, groups_of, identifier, matches, option_letter, strings, value

NAME = "video_mme"
GROUPS = ("duration", "domain", "sub_category", "task_type")

_TASK = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
# The original's list lacks two commas, so that Python concatenates prefixes 5 and 6, and 7 and 8.
_ORIGINAL_PREFIXES = (*PREFIXES[:4], "".join(PREFIXES[4:6]), "".join(PREFIXES[6:]))


def row(doc: Mapping[str, Any]) -> Row:
    """Parse an annotation row: videoID, duration, domain, sub_category, task_type, question, options (`A. …`), answer.

    Optional: `question_id`; `subtitles`, the text for the task with subtitles (see subtitles.py), which annotation
    files do not have.
    """
    for field in GROUPS:
        value(doc, field)
    video = value(doc, "videoID")
    return Row(
        answer=option_letter(doc),
        groups=groups_of(doc, GROUPS),
        video=video,
        files=tuple(f"{video}.{extension}" for extension in ("mp4", "MP4", "mkv")),
        question=value(doc, "question"),
        options=strings(doc, "options"),
        id=identifier(doc, "question_id"),
        subtitles=value(doc, "subtitles") if doc.get("subtitles") is not None else None,
    )


def prompt(row: Row) -> str:
    """The prompt of the original's lmms-eval tasks. Options appear as the `repr` of a Python list.

    The task with subtitles has another last line. The one without them mentions subtitles nevertheless.
    """
    question = f"{_TASK}\n{row.question}\n{list(row.options)}\n"
    if row.subtitles is None:
        return f"{question}\nAnswer with the option's letter from the given choices directly."
    return f"This video's subtitles are listed below: \n{row.subtitles}\n{question}The best answer is:"


def read(response: str) -> str:
    """The first of A–D after the prefixes that the original's lmms-eval task removes, or "".

    The original never removes four of the eight prefixes (see above), so "Best option: C" gives B, from "Best".
    """
    return first_letter(response, "ABCD", _ORIGINAL_PREFIXES)


def read_corrected(response: str) -> str:
    """The same with all prefixes removed, as the original intended: "Best option: C" gives C."""
    return first_letter(response, "ABCD")


def score(row: Row, response: str) -> bool:
    """Whether `read` gives the correct letter."""
    return matches(row, read(response))


def counts(response: str) -> bool:
    """Every response counts, even an empty one."""
    return True
