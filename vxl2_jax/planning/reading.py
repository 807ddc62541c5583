"""How long reading a film takes: decoding, conversion to RGB and resizing on the CPU.

The costs are those of H.264 at 1.6 to 3.4 Mbit/s on one x86-64 core, rounded from what `experiments.bench reading` measured (see
docs/results/speed.md). More bits take longer, and key frames alone a fraction.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vxl2_jax.errors import RequestError, shown

DECODE_MS, CONVERT_MS = 2.0, 12.0
"""CPU milliseconds per million pixels: to decode a frame of the film; to convert and resize a chosen one."""


class Film(NamedTuple):
    """Size of the picture in pixels, and frames per second."""

    width: int
    height: int
    rate: float

    def __str__(self) -> str:
        return f"{self.width} × {self.height} at {self.rate:g} frames per second"


def parse(text: str) -> Film:
    """A film from a text such as 1280x720@30. Raises RequestError for another one."""
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})@([0-9]{1,4}(?:\.[0-9]{1,6})?)", text)
    if found is None or not all(float(part) for part in found.groups()):
        raise RequestError(f"a film must be given as WIDTHxHEIGHT@RATE, such as 1280x720@30, not {shown(text)}")
    return Film(int(found[1]), int(found[2]), float(found[3]))


def cpu_seconds(film: Film, frames: int, fps: float) -> float:
    """CPU seconds to read `frames` frames of a film, sampled at `fps`."""
    decoded = max(1.0, film.rate / fps)
    return frames * film.width * film.height / 1e9 * (decoded * DECODE_MS + CONVERT_MS)
