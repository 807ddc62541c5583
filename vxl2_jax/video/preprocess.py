"""Resizing frames for the vision tower."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def resize_frame(rgb: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resize a frame to a square as the original's image processor does, without keeping the aspect ratio.

    Uses Pillow's bicubic filter (antialiased when shrinking) and its rounding to uint8.
    """
    if rgb.shape[:2] == (size, size):
        return np.ascontiguousarray(rgb)
    image = Image.fromarray(np.ascontiguousarray(rgb), "RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


_STRIP = 256
"""Rows of an image that are padded at a time."""


def resize_padded(
    rgb: UInt8[np.ndarray, "height width 3"], size: int, grey: int = 127
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """`resize_frame(pad_to_square(rgb, grey), size)`, without an array of max(height, width)² pixels.

    Pillow resizes rows first and columns then, and rounds to uint8 in between; so does this, in strips of rows.
    """
    height, width = rgb.shape[:2]
    side = max(height, width)
    if side == size:
        return pad_to_square(rgb, grey)
    top, left = (side - height) // 2, (side - width) // 2
    narrow = np.full((side, size, 3), grey, np.uint8)
    for start in range(0, height, _STRIP):
        rows = rgb[start : start + _STRIP]
        strip = np.full((len(rows), side, 3), grey, np.uint8)
        strip[:, left : left + width] = rows
        image = Image.fromarray(strip, "RGB").resize((size, len(rows)), Image.Resampling.BICUBIC)
        narrow[top + start : top + start + len(rows)] = np.asarray(image)
    return np.asarray(Image.fromarray(narrow, "RGB").resize((size, size), Image.Resampling.BICUBIC))


def pad_to_square(rgb: UInt8[np.ndarray, "height width 3"], grey: int = 127) -> UInt8[np.ndarray, "side side 3"]:
    """Centre a single image on a grey square, as the original's evaluation does with images.

    The side is max(height, width). An odd border is one pixel wider at the bottom or right.
    """
    height, width = rgb.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), grey, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = rgb
    return square
