"""The options of a multiple-choice row as plain texts, and the question without them: to score options by likelihood."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.data import BenchmarkVideo
from vxl2_jax.evaluation.rows import Row, letter

GENERATE, LIKELIHOOD = WAYS = ("generate", "likelihood")
"""How a question of a benchmark is answered. GENERATE: the model generates a response to the benchmark's prompt, and a
letter is read from it, as in the original. LIKELIHOOD: the question is asked alone, and the option whose text is the most
likely answer is chosen; see `likelihood.choose_many`."""
_LABEL = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[.):])\s*(.*)", re.DOTALL)


def split_question(row: Row) -> tuple[str, tuple[str, ...]]:
    """(the question without its options, the options without their letters).

    Raises RequestError for a row in which fewer than two options are found.
    """
    question, options = row.question, row.options
    if not options:  # MLVU: lines "(A) …" after the question
        question, *options = re.split(r"\n(?=\s*\([A-Z]\))", row.question)
    texts = _without_letters(options)
    if len(texts) < 2 or not all(text.strip() for text in texts) or not question.strip():
        raise RequestError(f"no options are found in the question {question.strip()[:40]!r}")
    return question.strip(), texts


def _without_letters(options: Sequence[str]) -> tuple[str, ...]:
    """Options without the letters A, B, C … before them, if all have theirs."""
    found = [_LABEL.fullmatch(option) for option in options]
    if all(match and (match[1] or match[2]) == letter(i) for i, match in enumerate(found)):
        return tuple(match[3].strip() for match in found if match)
    return tuple(option.strip() for option in options)


def keep_answerable(items: Sequence[BenchmarkVideo], left_out: Callable[[str], Any]) -> list[BenchmarkVideo]:
    """The videos with those of their rows that have options, and only videos that have such a row.

    left_out: called with the reason for each row that is left out. Raises RequestError if no row is left.
    """
    kept = []
    for item in items:
        rows = []
        for row in item.rows:
            try:
                split_question(row)
                rows.append(row)
            except RequestError as error:
                left_out(f"{item.video}: {error}")
        if rows:
            kept.append(replace(item, rows=tuple(rows)))
    if not kept:
        raise RequestError("no question has options to choose from: use --answer generate")
    return kept
