"""Images: a single one, a folder of them, and animations (GIF, PNG, WebP)."""

import contextlib
import re
import warnings
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, ImageSequence
from PIL import TiffImagePlugin as _tiff  # noqa: F401  registered, else Pillow imports its other forty formats to find these
from PIL import WebPImagePlugin as _webp  # noqa: F401

from vxl2_jax import files
from vxl2_jax.errors import VideoError

MAX_PIXELS = 50_000_000
MAX_SIDE = 32_768
MAX_ASPECT = 100
"""Limits of an image: with them, reading and resizing one takes less than 1 GB."""
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_ANIMATED = ("GIF", "PNG", "WEBP")
_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"])


def is_image(path: Path) -> bool:
    """Whether the file's content (not its name) is a still image."""
    with contextlib.suppress(Exception), _open(path):
        return True
    return False


def animation_times(path: Path) -> tuple[list[float], float] | None:
    """When each frame of an animation is shown, in seconds, and when the last one ends; None for a still image.

    Frames of at most 10 ms are shown for 100 ms, as browsers do. Raises VideoError as `read_image`.
    """
    with _reading(path) as image:
        if getattr(image, "n_frames", 1) < 2 or image.format not in _ANIMATED:
            return None
        _check_size(path, image.size)
        times, end = [], 0.0
        for frame in ImageSequence.Iterator(image):
            frame.load()  # some formats say how long a frame lasts only then
            duration = float(frame.info.get("duration") or 0)
            times.append(end)
            end += duration / 1000 if duration > 10 else 0.1
    return times, end


def read_animation(path: Path, frames: Sequence[int]) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Read frames of an animation, whose numbers increase. Raises VideoError as `read_image`."""
    with _reading(path) as image:
        for number in frames:
            image.seek(number)
            yield np.asarray(image.convert("RGB"))


def is_motion_jpeg(path: Path) -> bool:
    """Whether a file is JPEG images one after the other: a film without container. One named as an image never is."""
    if path.suffix.lower() in _SUFFIXES:
        return False
    with contextlib.suppress(Exception), _open(path) as image:
        if image.format != "JPEG":
            return False
        with av.open(f"file:{path}", container_options={"protocol_whitelist": "file"}) as container:
            return container.format.name == "mjpeg"
    return False


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image (the first frame if animated) as RGB, rotated as its EXIF tag says, without alpha.

    Raises VideoError if the image is damaged, or larger than MAX_PIXELS, MAX_SIDE or MAX_ASPECT (long by short side).
    """
    with _reading(path) as image:
        _check_size(path, image.size)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to white
            image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


@contextlib.contextmanager
def _reading(path: Path) -> Generator[Image.Image, None, None]:
    """An open image. Raises VideoError for what fails while it is used."""
    try:
        with _open(path) as image:
            yield image
    except VideoError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise VideoError(f"{path}: a damaged image; give another copy of it") from error


def _check_size(path: Path, size: tuple[int, int]) -> None:
    short, long = sorted(size)
    if short * long > MAX_PIXELS or long > MAX_SIDE or long > MAX_ASPECT * short:
        raise VideoError(
            f"{path}: {size[0]:,} × {size[1]:,} pixels; at most {MAX_PIXELS:,} pixels, {MAX_SIDE:,} along a side and "
            f"{MAX_ASPECT} times as long as wide are read: scale or crop it"
        )


def folder_images(folder: Path) -> list[Path]:
    """The images in a folder, sorted by file name with numbers in numeric order (2 before 10).

    Raises VideoError if there are none.
    """
    images = [p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.name[0] != "."]
    if not images:
        raise VideoError(f"{folder}: a folder without images (png, jpg, webp, bmp, gif, tiff); add some")
    return sorted(images, key=_natural_sort_key)


def _open(path: Path) -> Image.Image:
    # Still formats only: Pillow also opens MPEG files. Its warnings about huge or odd files do not help the user.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = files.open_regular(path, files.IMAGE)
        try:
            image = Image.open(file, formats=_FORMATS)
        except BaseException:
            file.close()
            raise
        image._exclusive_fp = True  # closed with the image
        return image


def _natural_sort_key(path: Path) -> tuple:
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts], path.name
