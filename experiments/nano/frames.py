"""The bank of rendered frames: clips rendered once to disk, with what every frame shows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from experiments.synthetic import clips, files, pictures
from vxl2_jax.errors import RequestError

FRAMES = 4  # per group
SIDE = 98
FILMED = 0.65  # fraction of the training backgrounds that are real footage
RENDERED = 196  # frames are rendered at this size and resized, as a video file is at test time
NOTHING = len(pictures.load()[0])  # the class of what shows no picture: the one after the pictures


class Bank(NamedTuple):
    """Rendered clips. Clip i owns the groups starts[i] … starts[i + 1] − 1.

    Shapes: pixels uint8 [G, 4, 98, 98, 3]; names int16 [G, 4], −1 where no picture is on screen; boxes float32 [G, 4, 4],
    (x0, y0, x1, y1) as fractions of the frame; starts int [C + 1].
    """

    split: int
    pixels: np.ndarray
    names: np.ndarray
    boxes: np.ndarray
    starts: np.ndarray


def draw(split: int, index: int, groups: int) -> clips.Clip:
    """Clip `index` of a split (0 training, 1 checking): always the same one.

    Training backgrounds change every few seconds, because a new one teaches more than the next second of the same, and
    most are footage of the training set. Checking clips are as usual, with footage of the test set.
    """
    rng = np.random.default_rng((split, index, 77))
    clip = clips.draw_clip(rng, seconds=FRAMES * groups, names=pictures.load()[0], footage="test" if split else "")
    if split:
        return clip
    scenes, t = [], 0.0
    while t < clip.seconds:
        scenes.append(clips.Scene(t, int(rng.integers(2**62)), "train" if rng.random() < FILMED else ""))
        t += round(rng.uniform(3, 13), 1)
    return replace(clip, scenes=tuple(scenes))


def open_bank(folder: Path, split: int, count: int) -> Bank:
    """A bank of `count` clips of 8 to 16 groups in `folder`; what is missing is rendered.

    Raises RequestError for a folder that holds another bank.
    """
    lengths = np.random.default_rng((split, 76)).integers(8, 17, count)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    total = int(starts[-1])
    shapes = {
        "pixels": (np.uint8, (total, FRAMES, SIDE, SIDE, 3)),
        "names": (np.int16, (total, FRAMES)),
        "boxes": (np.float32, (total, FRAMES, 4)),
    }

    def render(arrays: dict[str, np.ndarray], i: int) -> None:
        rng = np.random.default_rng((split, i, 78))
        clip = draw(split, i, int(lengths[i]))
        quality = int(rng.integers(30, 90)) if rng.random() < 0.6 else None
        for second in range(FRAMES * lengths[i]):
            place = starts[i] + second // FRAMES, second % FRAMES
            arrays["pixels"][place] = disturb(clips.render_frame(clip, float(second), RENDERED), rng, quality)
            shown = clips.boxes(clip, float(second)) or (-1, 0, 0, 0, 0)
            arrays["names"][place], arrays["boxes"][place] = shown[0], shown[1:]

    arrays = fill(folder, {"split": split, "count": count}, shapes, count, render)
    return Bank(split, **arrays, starts=starts)


def fill(
    folder: Path,
    about: dict[str, Any],
    shapes: dict[str, tuple[Any, tuple[int, ...]]],
    count: int,
    write: Callable[[dict[str, np.ndarray], int], None],
) -> dict[str, np.ndarray]:
    """Arrays in .npy files, opened read-only: parts that an earlier, interrupted call did not write are written now.

    Args:
      about: what the arrays are, compared with what the folder holds.
      shapes: dtype and shape of each array.
      write: called with the arrays and the number of each of `count` parts.
    """
    done = folder / "done.json"
    found = json.loads(done.read_text()) if done.exists() else {**about, "parts": 0}
    if found != {**about, "parts": found["parts"]}:
        raise RequestError(f"{folder}: holds {found}, not {about}; choose another --out, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    if found["parts"] < count:
        mode = "r+" if found["parts"] else "w+"
        arrays = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", mode, dtype, shape)
            for name, (dtype, shape) in shapes.items()
        }
        for i in range(found["parts"], count):
            write(arrays, i)
            if i % 20 == 19 or i == count - 1:
                for array in arrays.values():
                    array.flush()
                files.write(done, json.dumps({**about, "parts": i + 1}))
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes}


def disturb(frame: np.ndarray, rng: np.random.Generator, quality: int | None) -> np.ndarray:
    """A frame as it might come out of a video file: compressed, sometimes blurred or noisy."""
    image = Image.fromarray(frame)
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    if quality is not None:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        image = Image.open(file)
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    if rng.random() < 0.15:
        small = np.clip(small + rng.normal(0, rng.uniform(1, 6), small.shape), 0, 255).astype(np.uint8)
    return small


def covered(names: np.ndarray, boxes: np.ndarray, grid: int) -> np.ndarray:
    """Which picture covers the centre of each cell of a grid × grid raster.

    Shapes: names [...], boxes [..., 4] → int32 [..., grid, grid]; NOTHING where there is none.
    """
    centre = (np.arange(grid) + 0.5) / grid
    x0, y0, x1, y1 = (boxes[..., i, None] for i in range(4))
    inside = ((y0 <= centre) & (centre < y1))[..., :, None] & ((x0 <= centre) & (centre < x1))[..., None, :]
    return np.where(inside & (names >= 0)[..., None, None], names[..., None, None], NOTHING).astype(np.int32)
