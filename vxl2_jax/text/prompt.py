"""The prompt's text before, within and after a video, as in the original."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TURN_END = "<|im_end|>\n"
_USER, _ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"


def prefix_text() -> str:
    """The text before the video: 14 tokens of Qwen2.5."""
    return f"<|im_start|>system\nYou are a helpful assistant.{_TURN_END}{_USER}"


def suffix_text(question: str, history: Sequence[tuple[str, str]] = ()) -> str:
    """The text after the video: earlier (question, answer) turns, the question, the start of the assistant's turn.

    It is tokenised separately from the prefix, as the original does on both sides of its <image> token.
    """
    turns = "".join(
        f"{rewrite_clock_times(earlier)}{_TURN_END}{_ASSISTANT}{answer}{_TURN_END}{_USER}"
        for earlier, answer in history
    )
    return f"\n{turns}{rewrite_clock_times(question)}{_TURN_END}{_ASSISTANT}"


def timestamp_text(second: float) -> str:
    """The text before a group's visual tokens; `second` is the time of the group's first frame."""
    return f"Time {round(float(second), 1)}s:"


def rewrite_clock_times(text: str) -> str:
    """Replace mm:ss by seconds, the only form of time the model knows: "01:05" becomes "65 seconds"."""

    def seconds(match: re.Match) -> str:
        return f"{60 * int(match[1]) + int(match[2])} seconds"

    return re.sub(r"(\d{2}):(\d{2})", seconds, text)
