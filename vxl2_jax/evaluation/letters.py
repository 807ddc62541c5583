"""The first option letter in a response, after phrases that announce it: the rule of two benchmarks."""

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
"""As the original's lmms-eval tasks list them."""


def first_letter(response: str, letters: str, prefixes: tuple[str, ...] = PREFIXES) -> str:
    """The first capital of `letters` in `response` once all `prefixes` are removed, or "".

    Any capital will do, that of a word too: "Cats, so B" reads as C. As the original's lmms-eval tasks read it;
    their further rule, that more than ten words without a letter read as nothing, says nothing new.
    """
    for prefix in prefixes:
        response = response.replace(prefix, "")
    found = re.search(f"[{letters}]", response)
    return found[0] if found else ""
