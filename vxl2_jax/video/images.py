"""Still images as videos: one image, or a folder of them."""

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vxl2_jax.errors import VideoError

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"])


def is_image(path: Path) -> bool:
    """Whether the file's content (not its name) is a still image."""
    with contextlib.suppress(Exception), _opened(path):
        return True
    return False


def read_image(path: Path) -> np.ndarray:
    """Reads an image (the first frame of an animated one), upright by its EXIF tag, without alpha.

    Returns:
      uint8 (H, W, 3).

    Raises:
      VideoError: the image is damaged or too large to be an honest image.
    """
    try:
        with _opened(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
                image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise VideoError(f"{path}: a damaged image; give another copy of it") from error


def folder_images(folder: Path) -> list[Path]:
    """The images in a folder, by file name, with numbers in names in counting order (2 before 10).

    Raises:
      VideoError: there are none.
    """
    found = [p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file() and p.name[0] != "."]
    if not found:
        raise VideoError(f"{folder}: a folder without images (png, jpg, webp, bmp, gif, tiff); put some in it")
    return sorted(found, key=_natural)


def read_images(paths: list[Path]) -> Iterator[np.ndarray]:
    """Reads images one after another; as `read_image`."""
    return map(read_image, paths)


def _opened(path: Path):
    # Only still formats: Pillow also claims MPEG files. Its warnings on huge or odd files are not the user's.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(path, formats=_FORMATS)


def _natural(path: Path) -> tuple:
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts], path.name
