"""How a figure grows with the length of a video: the exponent p of figure ≈ c · frames^p."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def exponent(frames: Sequence[float], values: Sequence[float]) -> float | None:
    """Least squares over logarithms. None for fewer than two lengths, or where a value is not positive."""
    if len(set(frames)) < 2 or min(values) <= 0:
        return None
    return float(np.polyfit(np.log(frames), np.log(values), 1)[0])
