"""Transparent pictures, prepared once and pasted onto many frames."""

from typing import NamedTuple

import numpy as np


class Stamp(NamedTuple):
    """A picture to blend with a frame: (frame * keep + paint) / 256.

    Attributes:
      paint: uint16 [h, w, 3], colour times opacity.
      keep: uint16 [h, w, 1], transparency, 0 to 256.
    """

    paint: np.ndarray
    keep: np.ndarray


def from_rgba(rgba: np.ndarray) -> Stamp:
    """A stamp from uint8 [h, w, 4], alpha not multiplied in."""
    opacity = np.round(rgba[..., 3:].astype(np.float32) * (256 / 255)).astype(np.uint16)
    # keep * frame + paint is at most 255 * 256, so uint16 never overflows.
    return Stamp(rgba[..., :3] * opacity, (256 - opacity).astype(np.uint16))


def paste(frame: np.ndarray, stamp: Stamp, left: int, top: int) -> None:
    """Paste `stamp` onto `frame` (uint8 [size, size, 3], changed in place), clipped at the edges."""
    height, width = stamp.keep.shape[:2]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, frame.shape[1]), min(top + height, frame.shape[0])
    if x1 <= x0 or y1 <= y0:
        return
    rows, columns = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    mixed = frame[y0:y1, x0:x1] * stamp.keep[rows, columns]
    mixed += stamp.paint[rows, columns]
    mixed >>= 8
    frame[y0:y1, x0:x1] = mixed
