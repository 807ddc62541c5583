"""The first option letter in a response, after phrases such as "The answer is": the rule of two benchmarks."""

from __future__ import annotations

import re

PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)
"""As listed by the original's lmms-eval tasks."""


def first_letter(response: str, letters: str, prefixes: tuple[str, ...] = PREFIXES) -> str:
    """The first capital of `letters` in `response` after all `prefixes` are removed, or "".

    As in the original's lmms-eval tasks, the capital may start a word: "Cats, so B" gives C. Their other rule, that
    more than ten words without a letter give "", follows from this one.
    """
    for prefix in prefixes:
        response = response.replace(prefix, "")
    found = re.search(f"[{letters}]", response)
    return found[0] if found else ""
