"""The prompt's text before, within and after a video, and its token ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

PLAIN, ORIGINAL = STYLES = ("plain", "original")
"""How text that a user typed is read. PLAIN: it is ordinary text throughout. ORIGINAL: as the original does, which
recognises special tokens in it, and only clock times of the form mm:ss."""
MAX_QUESTION_TOKENS = 32_768
"""The longest question, with its template and the earlier turns: the window of Qwen2.5."""
START, END = MARKERS = ("<|im_start|>", "<|im_end|>")
"""The tokens around a turn."""
_USER, _ASSISTANT = "user\n", "assistant\n"
_CLOCK_TIME = re.compile(
    # Not a time of day (10:30 pm), a part of a word or number, or a ratio such as 16:9.
    r"(?<!\w)(?<!\d[:.])(?:(\d{1,3}):([0-5]\d)|(\d{1,5})):([0-5]\d(?:\.\d{1,3})?)(?![\w:]|\.\d|\s?[ap]\.?m\b)",
    re.IGNORECASE,
)


def prefix_text() -> str:
    """The text before the video: 14 tokens of Qwen2.5."""
    return f"{START}system\nYou are a helpful assistant.{END}\n{START}{_USER}"


def suffix_pieces(question: str, history: Sequence[tuple[str, str]] = (), style: str = PLAIN) -> list[str]:
    """The text after the video: earlier (question, answer) turns, the question, the start of the assistant's turn.

    Returns:
      Pieces of text. Those at odd places are special tokens, one of `MARKERS`, or empty. An answer is a piece of its own,
      as it was when it was generated.
    """
    rewrite = rewrite_clock_times if style == PLAIN else original_clock_times
    pieces, before = [], "\n"
    for earlier, answer in history:
        pieces += [before + rewrite(earlier), END, "\n", START, _ASSISTANT, "", answer, END, "\n", START]
        before = _USER
    return [*pieces, before + rewrite(question), END, "\n", START, _ASSISTANT]


def suffix_text(question: str, history: Sequence[tuple[str, str]] = (), style: str = PLAIN) -> str:
    """The same as one text."""
    return "".join(suffix_pieces(question, history, style))


def suffix_ids(tokenizer: Any, question: str, history: Sequence[tuple[str, str]] = (), style: str = PLAIN) -> list[int]:
    """Token ids of the text after the video, which is tokenised separately from the prefix, as the original does.

    Args:
      tokenizer: see `text.tokenizer.Tokenizer`.
      style: PLAIN: questions and answers contain no special tokens, whatever is typed. ORIGINAL: special tokens in them
        are recognised.
    """
    pieces = suffix_pieces(question, history, style)
    if style == ORIGINAL:
        return tokenizer.encode("".join(pieces))
    return [
        token
        for place, piece in enumerate(pieces)
        for token in (tokenizer.encode(piece) if place % 2 else tokenizer.encode_plain(piece))
    ]


def timestamp_text(second: float) -> str:
    """The text before a group's visual tokens; `second` is the time of the group's first frame."""
    return f"Time {round(float(second), 1)}s:"


def rewrite_clock_times(text: str) -> str:
    """Replace clock times by seconds, the only form of time the model knows.

    "01:05" and "1:05" become "65 seconds", "100:05" becomes "6005 seconds" and "1:02:05" becomes "3725 seconds".
    """

    def seconds(match: re.Match) -> str:
        hours, minutes, minutes_alone, rest = match.groups()
        whole, _, fraction = rest.partition(".")
        total = 3600 * int(hours or 0) + 60 * int(minutes or minutes_alone) + int(whole)
        return f"{total}{'.' * bool(fraction)}{fraction} seconds"

    return _CLOCK_TIME.sub(seconds, text)


def original_clock_times(text: str) -> str:
    """Replace mm:ss by seconds as the original does, wherever it occurs: "100:05" becomes "15 seconds"."""

    def seconds(match: re.Match) -> str:
        return f"{60 * int(match[1]) + int(match[2])} seconds"

    return re.sub(r"(\d{2}):(\d{2})", seconds, text)
