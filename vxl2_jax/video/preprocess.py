"""The pixels a frame is brought to before the vision tower. Symbols: H, W the frame's own size, S the tower's."""

import numpy as np
from PIL import Image


def resize_frame(rgb: np.ndarray, size: int) -> np.ndarray:
    """Squashes a frame to a square, as the original's image processor does.

    Pillow's bicubic filter (with antialiasing when shrinking) and its rounding to uint8; the aspect
    ratio is not kept.

    Args:
      rgb: uint8 (H, W, 3).
      size: S, the side in pixels.

    Returns:
      uint8 (S, S, 3).
    """
    if rgb.shape[:2] == (size, size):
        return np.ascontiguousarray(rgb)
    image = Image.fromarray(np.ascontiguousarray(rgb), "RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def pad_to_square(rgb: np.ndarray, grey: int = 127) -> np.ndarray:
    """Centres a single image on a grey square, as the original's evaluation does with images.

    Args:
      rgb: uint8 (H, W, 3).
      grey: the value of all three channels of the border.

    Returns:
      uint8 (max(H, W), max(H, W), 3); an odd border is one pixel wider at the bottom or right.
    """
    height, width = rgb.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), grey, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = rgb
    return square
