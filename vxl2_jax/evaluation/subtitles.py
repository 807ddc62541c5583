"""Subtitles as Video-MME's task with subtitles puts them into the prompt."""

from __future__ import annotations

import re

import numpy as np

FRAMES = 128
"""Frames that the original's lmms-eval task samples, independent of the frames given to the model."""
NONE = "No subtitles available"
"""The text in the prompt for a video without a subtitle file."""

_CLOCK = r"\s*(\d{1,4}):(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_TIMES = re.compile(rf"{_CLOCK} -->{_CLOCK}(?!\d)")
_WHITE_TEXT = re.compile(r'<font color="white" size=".72c">(.*?)</font>')


def parse(srt: str) -> dict[tuple[float, float], str]:
    """Parse an SRT file to {(start, end) in seconds: text}, joining lines. The last of several texts with the same times
    is kept.

    What follows a pair of times on its line, such as a position, is ignored. A part without a pair of times, such as the
    rest of a text with a blank line in it, is skipped; the original stops there.
    """
    parts = (part.split("\n") for part in srt.replace("\r\n", "\n").split("\n\n") if part.strip())
    texts = {}
    for lines in parts:
        if len(lines) >= 3 and (times := _TIMES.match(lines[1])):
            start, end = _seconds(*times.groups()[:4]), _seconds(*times.groups()[4:])
            texts[start, end] = " ".join(lines[2:])
    return texts


def _seconds(hours: str, minutes: str, seconds: str, milliseconds: str) -> float:
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds) + int(milliseconds.ljust(3, "0")) / 1000


def at_frames(srt: str, fps: float, frames: int, samples: int = FRAMES) -> str:
    """The subtitles visible at `samples` frames spread evenly over a video of `frames` frames, one line each.

    As in the original's lmms-eval task, only text in the white font tag of Video-MME's files counts, and of one
    subtitle only the first such text.
    """
    shown = [(int(start * fps), int(end * fps), text) for (start, end), text in parse(srt).items()]
    sampled = np.linspace(0, frames - 1, samples, dtype=int).tolist()
    picked = [i for frame in sampled for i, (start, end, _) in enumerate(shown) if start <= frame < end]
    # Not sorted: the original uses the iteration order of Python's set, which is chronological only if the hash table
    # is large enough.
    matched = (_WHITE_TEXT.search(shown[i][2]) for i in list(set(picked)))
    return "\n".join(match[1] for match in matched if match)
