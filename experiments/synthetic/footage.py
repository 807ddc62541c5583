"""Real films and photographs as backgrounds: a moving crop of one of them, chosen and placed by a seed.

Two sets that share no film: "train" and "test". Both lie in `footage/` beside this file (its CREDITS.md says where
they come from); `make_footage.py` can add to the training set what may not be shipped, in `footage/fetched/`.
"""

import functools
import pathlib
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

SETS = ("train", "test")
_HERE = pathlib.Path(__file__).resolve().parent / "footage"
_FOLDERS = {"train": ("train", "fetched"), "test": ("test",)}
_PAN = 0.02  # greatest speed of a crop, shares of its room per second: films move by themselves
_PAN_STILL = 0.1  # … over a photograph, which does not


class Film(NamedTuple):
    """uint8 [N, H, W, 3] at `rate` frames per second; a photograph is one frame."""

    frames: np.ndarray
    rate: float


class View(NamedTuple):
    """Where a seed looks: which film, from which second on, and what part of it.

    Attributes:
      path: the film.
      begin: second of the film shown at second 0, as a share of its length.
      side: of the square crop, as a share of the film's shorter side.
      phase, speed: of the crop's way over the film (right, down), in shares of its room and per second.
      mirror: left to right.
      colour: a 3 × 4 matrix on (red, green, blue, 1) row by row, or None for the film's own colours.
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
    """The films and the photographs of a set ("train" or "test"), sorted by name."""
    if which not in SETS:
        raise ValueError(f"footage is one of {', '.join(map(repr, SETS))}, not {which!r}")
    found = [path for folder in _FOLDERS[which] for path in (_HERE / folder).glob("*")]
    found.sort(key=lambda path: path.name)
    return tuple(p for p in found if p.suffix == ".mp4"), tuple(p for p in found if p.suffix == ".webp")


@functools.cache
def film(path: pathlib.Path) -> Film:
    """A film, decoded once and kept."""
    if path.suffix == ".webp":
        with Image.open(path) as picture:
            return Film(np.asarray(picture.convert("RGB"))[None], 1.0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return Film(frames, float(stream.average_rate))


@functools.lru_cache(maxsize=64)
def view(seed: int, which: str) -> View:
    """What `seed` looks at: a film as often as a photograph; longer films more often (by the root of their length)."""
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
    """A random change of colours: for three in ten none, for four a slight one, for three another mix of channels."""
    kind = rng.random()
    if kind < 0.3:
        return None
    mix = np.eye(3)
    if kind > 0.7:
        strength = rng.random()
        mix = (1 - strength) * mix + strength * rng.dirichlet([0.5] * 3, 3)
    vivid = rng.uniform(0.5, 1.8)  # 0 would be grey, 1 leaves the saturation as it is
    mix = vivid * mix + (1 - vivid) / 3
    mix *= rng.uniform(0.7, 1.2) * rng.normal(1, 0.08, (3, 1))
    return tuple(np.concatenate([mix, rng.normal(0, 12, (3, 1))], 1).ravel())


def draw(seed: int, t: float, size: int, which: str) -> np.ndarray:
    """What `seed` shows at second `t`: uint8 [size, size, 3], a fresh array. Films play at their own speed, round and
    round."""
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
