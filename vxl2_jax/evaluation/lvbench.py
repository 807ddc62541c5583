"""LVBench: https://arxiv.org/abs/2406.08035."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.rows import Row, groups_of, is_unanswered, letter, lettered, matches, strings, value

NAME = "lvbench"
GROUPS = ("type", "question_type")

_OPTION = re.compile(r"([A-E])\.\s*.+", re.IGNORECASE)
_WORD = re.compile(r"\b([a-e])\b")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOPS = 32
"""How many full stops are removed: the original passes its regex flag to `re.sub` in the place of the count."""


def row(doc: Mapping[str, Any]) -> Row:
    """Parse an annotation row: video, question, candidates, answer (the text of one), type, question_type (a list).

    An answer that is not among the candidates makes every response wrong, as in the original's lmms-eval task.
    """
    options = strings(doc, "candidates")
    if len(options) > 5:
        raise RequestError(f"'candidates' has {len(options)} entries; give up to 5: responses are read as A–E")
    answer, video = None if is_unanswered(doc) else value(doc, "answer"), value(doc, "video")
    value(doc, "type")
    strings(doc, "question_type")
    return Row(
        answer=None if answer is None else letter(options.index(answer)) if answer in options else "",
        groups=groups_of(doc, GROUPS),
        video=video,
        files=(f"{video}.mp4",),
        question=value(doc, "question"),
        options=options,
    )


def prompt(row: Row) -> str:
    """The prompt of the original's lmms-eval task. Candidates with a letter of their own get a second one."""
    return f"{row.question}\n{lettered(row.options)}\nAnswer with the option's letter from the given choices directly."


def read(response: str) -> str:
    """The letter of a response of the form `B. …`, else the first of A–E that is a word once punctuation is removed,
    or "". Case-insensitive, so that the article "a" gives A.

    It reproduces the original's lmms-eval task, including its irregular treatment of punctuation.
    """
    response = response.strip()
    if found := _OPTION.fullmatch(response):
        return found[1].upper()
    found = _WORD.search(_without_punctuation(re.sub(r"[\n\t]", " ", response)).lower())
    return found[1].upper() if found else ""


def _without_punctuation(text: str) -> str:
    """Replace each punctuation mark by a space. But remove all marks of a kind, joining the text around them, if one of
    that kind is next to a space, or if the text has a number such as 1,000. Remove full stops not before a digit."""
    has_thousands = re.search(r"\d,\d", text)
    cleaned = text
    for mark in _PUNCTUATION:
        remove = has_thousands or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if remove else " ")
    return re.sub(r"\.(?!\d)", "", cleaned, count=_FULL_STOPS)


def score(row: Row, response: str) -> bool:
    """Whether `read` gives the correct letter."""
    return matches(row, read(response))


def counts(response: str) -> bool:
    """An empty response is left out of the denominator, as in the original's lmms-eval task."""
    return response != ""
