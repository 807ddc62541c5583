"""Subtitles as Video-MME's task with subtitles puts them into the prompt."""

from __future__ import annotations

import re

import numpy as np

from vxl2_jax.errors import RequestError

FRAMES = 128
"""Frames that the original's lmms-eval task samples; independent of those that the model sees."""
NONE = "No subtitles available"
"""What stands in the prompt for a video without a subtitle file."""

_SPOKEN = re.compile(r'<font color="white" size=".72c">(.*?)</font>')


def parse(srt: str) -> dict[tuple[float, float], str]:
    """(start, end) in seconds → text, its lines joined. Of two texts at the same times the later one stays.

    Raises RequestError for a line that is no pair of times.
    """
    parts = (part.split("\n") for part in srt.split("\n\n") if part.strip())
    found = {}
    for lines in parts:
        if len(lines) >= 3:
            try:
                start, end = map(_seconds, lines[1].split(" --> ")[:2])
            except ValueError as error:
                raise RequestError(f"{lines[1]!r:.60} must be times, as in '00:00:01,500 --> 00:00:04,000'") from error
            found[start, end] = " ".join(lines[2:])
    return found


def _seconds(clock: str) -> float:
    hours, minutes, rest = clock.split(":")
    seconds, thousandths = rest.split(",")
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds) + int(thousandths) / 1000


def at_frames(srt: str, fps: float, frames: int, samples: int = FRAMES) -> str:
    """The subtitles shown at `samples` frames spread over a video of so many frames, one a line, each once.

    As the original's lmms-eval task picks them: only text in the white font tag of Video-MME's files is spoken
    text, and of one subtitle only the first such piece.
    """
    shown = [(int(start * fps), int(end * fps), text) for (start, end), text in parse(srt).items()]
    sampled = np.linspace(0, frames - 1, samples, dtype=int).tolist()
    picked = [i for frame in sampled for i, (start, end, _) in enumerate(shown) if start <= frame < end]
    # The original's order, that of Python's set of integers; in time only where the set's table holds the numbers.
    spoken = (_SPOKEN.search(shown[i][2]) for i in list(set(picked)))
    return "\n".join(found[1] for found in spoken if found)
