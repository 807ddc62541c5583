"""LVBench: https://arxiv.org/abs/2406.08035."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.rows import Row, groups_of, letter, lettered, matches, texts, value

NAME = "lvbench"
GROUPS = ("type", "question_type")

_OPTION = re.compile(r"([A-E])\.\s*.+", re.IGNORECASE)
_WORD = re.compile(r"\b([a-e])\b")
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOPS = 32
"""How many full stops go: the original hands its regex flag to `re.sub` in the place of the count."""


def row(doc: Mapping[str, Any]) -> Row:
    """An annotation row: video, question, candidates, answer (the text of one), type, question_type (a list).

    An answer that is none of the candidates makes every response wrong, as in the original's lmms-eval task.
    """
    options = texts(doc, "candidates")
    if len(options) > 5:
        raise RequestError(f"'candidates' has {len(options)} entries; give up to 5, for responses are read as A–E")
    answer, video = value(doc, "answer"), value(doc, "video")
    value(doc, "type")
    texts(doc, "question_type")
    return Row(
        answer=letter(options.index(answer)) if answer in options else "",
        groups=groups_of(doc, GROUPS),
        video=video,
        files=(f"{video}.mp4",),
        question=value(doc, "question"),
        options=options,
    )


def prompt(row: Row) -> str:
    """As the original's lmms-eval task asks. Candidates that carry a letter of their own get a second one."""
    return f"{row.question}\n{lettered(row.options)}\nAnswer with the option's letter from the given choices directly."


def read(response: str) -> str:
    """The letter of a response that starts as `B. …`, else the first of A–E that stands as a word once punctuation
    is removed; upper or lower case, so that the article "a" reads as A. "" if there is none.

    As the original's lmms-eval task reads it, to the last oddity of its punctuation.
    """
    response = response.strip()
    if found := _OPTION.fullmatch(response):
        return found[1].upper()
    found = _WORD.search(_without_marks(re.sub(r"[\n\t]", " ", response)).lower())
    return found[1].upper() if found else ""


def _without_marks(text: str) -> str:
    """A mark becomes a space; but if one of its kind stands beside a space, or the text has a number such as 1,000,
    all of its kind vanish and join what they divided. Full stops vanish, except before a digit."""
    thousands = re.search(r"\d,\d", text)
    left = text
    for mark in _MARKS:
        vanishes = thousands or f"{mark} " in text or f" {mark}" in text
        left = left.replace(mark, "" if vanishes else " ")
    return re.sub(r"\.(?!\d)", "", left, count=_FULL_STOPS)


def score(row: Row, response: str) -> bool:
    """Whether the response is read as the right letter."""
    return matches(row, read(response))


def counts(response: str) -> bool:
    """An empty response leaves the denominator, as in the original's lmms-eval task."""
    return response != ""
