"""Text that users type, and text for a terminal."""

from __future__ import annotations

import json
import re
from typing import Any

from vxl2_jax.errors import RequestError

MAX_CHARACTERS = 1_000_000
"""Longer questions are refused before they are tokenised."""
# Control characters except for line feed and tab, lone surrogates, and characters that reorder a line.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def prepare(text: Any, what: str = "the question") -> str:
    """Text as the model gets it. It is never taken for anything but text, such as the name of a file.

    Surrogates, which UTF-8 cannot encode, are paired; a lone one becomes U+FFFD. Nothing else is changed: see
    `Tokenizer.encode_plain` for special tokens.

    Raises:
      RequestError: it is no text, blank, or longer than `MAX_CHARACTERS`; `what` names it.
    """
    if not isinstance(text, str):
        raise RequestError(f"{what} must be text, not {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"{what} has {len(text):,} characters; shorten it to at most {MAX_CHARACTERS:,}")
    if not text.strip():
        raise RequestError(f"{what} is empty: give some text")
    return pair_surrogates(text)


def pair_surrogates(text: str) -> str:
    """The text with pairs of surrogates as one character, and U+FFFD for lone ones."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def printable(text: str) -> str:
    """Text for a terminal: control characters, which could move the cursor or colour the screen, as \\x1b or \\u202e."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}" if ord(match[0]) < 256 else _escape(match), text)


def printable_json(document: Any, indent: int | None = 1) -> str:
    """A JSON document for a terminal, which reads back the same. indent: None for a single line."""
    return _CONTROL.sub(_escape, json.dumps(document, ensure_ascii=False, indent=indent))


def _escape(match: re.Match) -> str:
    return f"\\u{ord(match[0]):04x}"
