"""Video-MME, with and without subtitles: https://arxiv.org/abs/2405.21075."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vxl2_jax.evaluation.letters import PREFIXES, first_letter
from vxl2_jax.evaluation.rows import Row, groups_of, matches, option_letter, texts, value

NAME = "video_mme"
GROUPS = ("duration", "domain", "sub_category", "task_type")

_TASK = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
# Two commas are missing in the original's list, which joins the prefixes beside them: a response has neither.
_ORIGINAL_PREFIXES = (*PREFIXES[:4], "".join(PREFIXES[4:6]), "".join(PREFIXES[6:]))


def row(doc: Mapping[str, Any]) -> Row:
    """An annotation row: videoID, duration, domain, sub_category, task_type, question, options (`A. …`), answer.

    `question_id` may be missing. `subtitles` (see subtitles.py) is no field of the annotations: add the text
    for the task with subtitles.
    """
    for field in GROUPS:
        value(doc, field)
    video = value(doc, "videoID")
    return Row(
        answer=option_letter(doc),
        groups=groups_of(doc, GROUPS),
        video=video,
        files=tuple(f"{video}.{ending}" for ending in ("mp4", "MP4", "mkv")),
        question=value(doc, "question"),
        options=texts(doc, "options"),
        id=doc.get("question_id"),
        subtitles=value(doc, "subtitles") if doc.get("subtitles") is not None else None,
    )


def prompt(row: Row) -> str:
    """As the original's lmms-eval tasks ask. The options appear as Python shows a list of texts: in brackets and
    quotes. The task with subtitles has another last line; the one without speaks of subtitles all the same.
    """
    question = f"{_TASK}\n{row.question}\n{list(row.options)}\n"
    if row.subtitles is None:
        return f"{question}\nAnswer with the option's letter from the given choices directly."
    return f"This video's subtitles are listed below: \n{row.subtitles}\n{question}The best answer is:"


def read(response: str) -> str:
    """The first of A–D after the prefixes that the original's lmms-eval task removes, or "".

    Four of the eight prefixes are never removed there (see above), so "Best option: C" reads as B, of "Best".
    """
    return first_letter(response, "ABCD", _ORIGINAL_PREFIXES)


def read_mended(response: str) -> str:
    """The same with all prefixes removed, as was meant: "Best option: C" reads as C."""
    return first_letter(response, "ABCD")


def score(row: Row, response: str) -> bool:
    """Whether the response is read as the right letter."""
    return matches(row, read(response))


def counts(response: str) -> bool:
    """Every response counts, empty ones too."""
    return True
