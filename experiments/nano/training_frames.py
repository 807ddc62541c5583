"""Stage 0: a bank of rendered clips on disk, made once, with what is to be seen in every frame."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from experiments.synthetic import clips, pictures

FRAMES = 4  # per group
SIDE = 98
FILMED = 0.65  # of the backgrounds in training, the share that is real footage
RENDERED = 196  # clips are drawn this large and resized, as a video file is at test time


@dataclass(frozen=True)
class Frames:
    """The bank. Clip i owns the groups starts[i] … starts[i + 1] − 1.

    Shapes: pixels uint8 [G, 4, 98, 98, 3]; names int16 [G, 4], −1 where no picture is on screen;
    boxes fp32 [G, 4, 4] as (x0, y0, x1, y1) in fractions of the frame. `done` counts rendered groups.
    """

    pixels: np.ndarray
    names: np.ndarray
    boxes: np.ndarray
    starts: np.ndarray
    done: int


def draw(split: int, index: int, groups: int) -> clips.Clip:
    """Clip `index` of a split (0 training, 1 checking): always the same one.

    In training, backgrounds change every few seconds and most are training footage: a new one teaches more than the
    next second of the same. In checking, clips are as drawn and show footage of the test set.
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


def disturb(frame: np.ndarray, rng: np.random.Generator, quality: int | None) -> np.ndarray:
    """A frame as it might come out of a video file: compressed, at times blurred or noisy."""
    image = Image.fromarray(frame)
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    if quality is not None:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        image = Image.open(file)
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    if rng.random() < 0.15:
        noise = rng.normal(0, rng.uniform(1, 6), small.shape)
        small = np.clip(small + noise, 0, 255).astype(np.uint8)
    return small


def plan(split: int, count: int) -> np.ndarray:
    """int [count + 1]: where each clip's groups start; clips have 8 to 16 groups."""
    lengths = np.random.default_rng((split, 76)).integers(8, 17, count)
    return np.concatenate([[0], np.cumsum(lengths)])


def render(folder: Path, split: int, count: int) -> None:
    """Render `count` clips into `folder`; goes on where an earlier call was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = plan(split, count)
    total, counter = int(starts[-1]), folder / "done.json"
    mode = "r+" if counter.exists() else "w+"
    shapes = _shapes(total)
    pixels, names, boxes = (
        np.lib.format.open_memmap(folder / f"{key}.npy", mode, dtype, shape) for key, (dtype, shape) in shapes.items()
    )
    first = json.loads(counter.read_text())["clips"] if mode == "r+" else 0
    for i in range(first, count):
        rng = np.random.default_rng((split, i, 78))
        clip = draw(split, i, int(starts[i + 1] - starts[i]))
        quality = int(rng.integers(30, 90)) if rng.random() < 0.6 else None
        for g in range(starts[i], starts[i + 1]):
            for f in range(FRAMES):
                t = float(FRAMES * (g - starts[i]) + f)
                pixels[g, f] = disturb(clips.render_frame(clip, t, RENDERED), rng, quality)
                found = clips.boxes(clip, t)
                names[g, f] = -1 if found is None else found[0]
                boxes[g, f] = 0 if found is None else found[1:]
        if i % 20 == 19 or i == count - 1:
            for array in (pixels, names, boxes):
                array.flush()
            counter.write_text(json.dumps({"split": split, "count": count, "clips": i + 1}))


def load(folder: Path) -> Frames:
    """Open a bank, finished or still growing.

    Raises ValueError where its clips are not those that `draw` gives (clips are drawn otherwise than they were).
    """
    about = json.loads((folder / "done.json").read_text())
    starts = plan(about["split"], about["count"])
    arrays = (np.load(folder / f"{key}.npy", mmap_mode="r") for key in _shapes(0))
    bank = Frames(*arrays, starts=starts[: about["clips"] + 1], done=int(starts[about["clips"]]))
    first, times = draw(about["split"], 0, int(starts[1])), range(FRAMES * int(starts[1]))
    shown = [-1 if (found := clips.boxes(first, float(t))) is None else found[0] for t in times]
    if shown != bank.names[: starts[1]].ravel().tolist():
        raise ValueError(f"{folder} holds other clips than are drawn now: remove it and run the stage `frames` again")
    return bank


def _shapes(groups: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    return {
        "pixels": (np.uint8, (groups, FRAMES, SIDE, SIDE, 3)),
        "names": (np.int16, (groups, FRAMES)),
        "boxes": (np.float32, (groups, FRAMES, 4)),
    }


def covered(names: np.ndarray, boxes: np.ndarray, grid: int, none: int) -> np.ndarray:
    """Which picture covers the centre of each cell of a grid × grid raster.

    Shapes: names [...], boxes [..., 4] → int32 [..., grid, grid]; `none` where there is nothing.
    """
    centre = (np.arange(grid) + 0.5) / grid
    x0, y0, x1, y1 = (boxes[..., i, None] for i in range(4))
    inside = ((y0 <= centre) & (centre < y1))[..., :, None] & ((x0 <= centre) & (centre < x1))[..., None, :]
    return np.where(inside & (names >= 0)[..., None, None], names[..., None, None], none).astype(np.int32)
