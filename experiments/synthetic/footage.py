"""Real films and photographs as backgrounds: a moving crop, chosen by a seed.

The sets "train" and "test" share no film. Both are in the folder footage/ (sources in its CREDITS.md). Training films
that cannot be distributed are read from footage/fetched/ if it exists.
"""

import functools
import pathlib
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

SETS = ("train", "test")
_FOLDER = pathlib.Path(__file__).resolve().parent / "footage"
_SUBFOLDERS = {"train": ("train", "fetched"), "test": ("test",)}
_PAN = 0.02  # greatest speed of a crop of a film, fractions of its range per second
_PAN_STILL = 0.1  # the same over a photograph


class Film(NamedTuple):
    """uint8 [N, H, W, 3] at `rate` frames per second; a photograph is one frame."""

    frames: np.ndarray
    rate: float


class View(NamedTuple):
    """The part of a film that a seed shows.

    Attributes:
      path: the film.
      begin: time of the film shown at second 0, as a fraction of its length.
      side: side of the square crop, as a fraction of the film's shorter side.
      phase, speed: position of the crop (right, down) as a fraction of its range, and its change per second.
      mirror: whether it is mirrored left to right.
      colour: a 3 × 4 matrix on (red, green, blue, 1), row by row, or None for the original colours.
    """

    path: pathlib.Path
    begin: float
    side: float
    phase: tuple[float, float]
    speed: tuple[float, float]
    mirror: bool
    colour: tuple[float, ...] | None


@functools.cache
def paths(which: str) -> tuple[tuple[pathlib.Path, ...], tuple[pathlib.Path, ...]]:
    """The films and the photographs of a set, each sorted by name. Raises ValueError for an unknown set."""
    if which not in SETS:
        raise ValueError(f"footage is one of {', '.join(map(repr, SETS))}, not {which!r}")
    found = [path for folder in _SUBFOLDERS[which] for path in (_FOLDER / folder).glob("*")]
    found.sort(key=lambda path: path.name)
    return tuple(p for p in found if p.suffix == ".mp4"), tuple(p for p in found if p.suffix == ".webp")


@functools.cache
def film(path: pathlib.Path) -> Film:
    """A decoded film or photograph."""
    if path.suffix == ".webp":
        with Image.open(path) as picture:
            return Film(np.asarray(picture.convert("RGB"))[None], 1.0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return Film(frames, float(stream.average_rate))


@functools.lru_cache(maxsize=64)
def view(seed: int, which: str) -> View:
    """The random view of `seed`: a film or a photograph with equal probability; a film with a probability proportional to
    the square root of its length."""
    rng = np.random.default_rng((seed, 5))
    films, stills = paths(which)
    if rng.random() < 0.5:
        weights = np.array([len(film(path).frames) / film(path).rate for path in films]) ** 0.5
        path, pan = films[rng.choice(len(films), p=weights / weights.sum())], _PAN
    else:
        path, pan = stills[rng.integers(len(stills))], _PAN_STILL
    speed = rng.uniform(-pan, pan, 2)
    return View(
        path,
        rng.random(),
        rng.uniform(0.45, 1) if which == "train" else rng.uniform(0.6, 1),
        tuple(rng.uniform(0, 2, 2)),
        tuple(speed),
        bool(rng.random() < 0.5),
        _colour(rng) if which == "train" else None,
    )


def _colour(rng: np.random.Generator) -> tuple[float, ...] | None:
    """A random colour matrix: none with probability 0.3, a slight change with 0.4, mixed channels with 0.3."""
    kind = rng.random()
    if kind < 0.3:
        return None
    mix = np.eye(3)
    if kind > 0.7:
        strength = rng.random()
        mix = (1 - strength) * mix + strength * rng.dirichlet([0.5] * 3, 3)
    vivid = rng.uniform(0.5, 1.8)  # saturation factor
    mix = vivid * mix + (1 - vivid) / 3
    mix *= rng.uniform(0.7, 1.2) * rng.normal(1, 0.08, (3, 1))
    return tuple(np.concatenate([mix, rng.normal(0, 12, (3, 1))], 1).ravel())


def draw(seed: int, t: float, size: int, which: str) -> np.ndarray:
    """The view of `seed` at second `t`: uint8 [size, size, 3], a new array. Films play at their own speed and repeat."""
    looks = view(seed, which)
    frames, rate = film(looks.path)
    frame = frames[int((looks.begin * len(frames) + t * rate) % len(frames))]
    height, width = frame.shape[:2]
    side = looks.side * min(height, width)
    left, top = (
        room * (1 - abs((phase + speed * t) % 2 - 1))
        for room, phase, speed in zip((width - side, height - side), looks.phase, looks.speed, strict=True)
    )
    crop = Image.fromarray(frame).resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    if looks.colour is not None:
        crop = crop.convert("RGB", looks.colour)
    return np.array(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if looks.mirror else crop)
