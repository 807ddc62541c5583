"""Moving backgrounds drawn from a seed, at any second: generated ones or real footage.

A generated background is two seamless textures that slide and fade into each other, with a few plain shapes bouncing
over them. The shapes appear and disappear as the named pictures do, so noticing a change is not enough to answer a
question. There is little training footage, so some of it is augmented: blended with textures or other footage, or
covered by shapes and pieces of other footage.
"""

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from experiments.synthetic import footage as films
from experiments.synthetic import stamps, textures


class Shape(NamedTuple):
    """A bouncing shape of one colour; side and positions are fractions of the frame, speeds per second."""

    stamp: stamps.Stamp
    side: float
    phase: tuple[float, float]
    speed: tuple[float, float]
    blink: tuple[float, float, float]  # period in seconds, phase, fraction of the period shown


class Piece(NamedTuple):
    """A bouncing square of other footage, with the units of `Shape`."""

    side: float
    phase: tuple[float, float]
    speed: tuple[float, float]


class Background(NamedTuple):
    """A generated background for one frame size.

    Attributes:
      tiles: two uint8 [2 * size, 2 * size, 3], each a seamless texture repeated 2 × 2, so that any shift is one crop.
      speed: [2, 2], how many frame sides each texture slides per second (down, right).
      fade: middle, swing and period (seconds) of the first texture's weight.
      shapes: pasted on top.
    """

    tiles: tuple[np.ndarray, np.ndarray]
    speed: np.ndarray
    fade: tuple[float, float, float]
    shapes: tuple[Shape, ...]


def draw(seed: int, t: float, size: int, footage: str = "") -> np.ndarray:
    """The background of `seed` at second `t`: uint8 [size, size, 3], a new array.

    `footage`: "" for a generated background, "train" or "test" for footage of that set, augmented if "train".
    """
    if not footage:
        ground = _prepare(seed, size)
        return _paste_shapes(_textures(ground, t, size), ground.shapes, t)
    frame = films.draw(seed, t, size, footage)
    if footage == "train":
        over, share, shapes, pieces = _augmentation(seed)
        if over == "textures":
            frame = _mix(frame, _textures(_prepare(seed, size), t, size), share)
        elif over == "footage":
            frame = _mix(frame, films.draw(seed + 1, t, size, footage), share)
        for i, piece in enumerate(pieces):
            left, top = _position(piece, t, size)
            side = round(piece.side * size)
            frame[top : top + side, left : left + side] = films.draw(seed + 2 + i, t, side, footage)
        if shapes:
            frame = _paste_shapes(frame, _prepare(seed, size).shapes, t)
    return frame


def _textures(ground: Background, t: float, size: int) -> np.ndarray:
    """The two textures of a generated background at second `t`: uint8 [size, size, 3]."""
    crops = []
    for tile, speed in zip(ground.tiles, ground.speed, strict=True):
        top, left = np.int64(np.floor(speed * t * size)) % size
        crops.append(tile[top : top + size, left : left + size])
    middle, swing, period = ground.fade
    return _mix(crops[0], crops[1], middle + swing * np.sin(2 * np.pi * t / period))


def _mix(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Blend two uint8 pictures with weights `share` and 1 - share."""
    weight = int(256 * share)
    mixed = one * np.uint16(weight)
    mixed += other * np.uint16(256 - weight)
    mixed >>= 8
    return mixed.astype(np.uint8)


def _paste_shapes(frame: np.ndarray, shapes: tuple[Shape, ...], t: float) -> np.ndarray:
    """`frame`, changed in place, with the shapes that are visible at second `t`."""
    size = len(frame)
    for shape in shapes:
        period, phase, share = shape.blink
        if (t / period + phase) % 1 < share:
            stamps.paste(frame, shape.stamp, *_position(shape, t, size))
    return frame


def _position(thing: Shape | Piece, t: float, size: int) -> tuple[int, int]:
    """Left and top edge in pixels of something that bounces inside the frame."""
    left, top = (size * (1 - thing.side) * _bounce(p + v * t) for p, v in zip(thing.phase, thing.speed, strict=True))
    return int(round(left)), int(round(top))


@functools.lru_cache(maxsize=32)
def _augmentation(seed: int) -> tuple[str, float, bool, tuple[Piece, ...]]:
    """How training footage is augmented: blended with "textures", "footage" or nothing (""), its weight, whether shapes
    are pasted, and pieces of other footage."""
    rng = np.random.default_rng((seed, 6))
    over = rng.choice(["", "textures", "footage"], p=[0.5, 0.3, 0.2])
    share, shapes = rng.uniform(0.35, 0.85), bool(rng.random() < 0.4)
    count = rng.integers(1, 6) if rng.random() < 0.4 else 0
    pieces = (Piece(rng.uniform(0.15, 0.6), rng.uniform(0, 2, 2), rng.uniform(-0.3, 0.3, 2)) for _ in range(count))
    return str(over), share, shapes, tuple(pieces)


def _bounce(x: float) -> float:
    """A triangle wave from 0 to 1 and back with period 2."""
    return 1 - abs(x % 2 - 1)


@functools.lru_cache(maxsize=32)
def _prepare(seed: int, size: int) -> Background:
    # Every size draws the same random numbers, so a clip looks the same at all sizes.
    rng = np.random.default_rng(seed)
    vivid = rng.uniform(0.1, 1)
    tiles = tuple(textures.texture(np.random.default_rng(s), size, vivid) for s in rng.integers(2**62, size=2))
    speed = rng.uniform(-0.15, 0.15, (2, 2))
    middle = rng.uniform(0.3, 0.7)
    fade = (middle, rng.uniform(0.05, 0.3), rng.uniform(5, 30))
    shapes = tuple(_shape(rng, size) for _ in range(rng.integers(0, 5)))
    return Background(tiles, speed, fade, shapes)


def _shape(rng: np.random.Generator, size: int) -> Shape:
    """A circle, ring, rectangle or triangle in one random colour."""
    kind = rng.choice(["circle", "ring", "rectangle", "triangle"])
    side, flat = rng.uniform(0.08, 0.28), rng.uniform(0.4, 1)
    red, green, blue = (int(c) for c in textures.colour(rng, 1))
    opacity = int(rng.uniform(120, 255))
    pixels = max(2, round(side * size))
    big = 4 * pixels  # drawn large and scaled down: smooth edges
    mask = Image.new("L", (big, big))
    pen = ImageDraw.Draw(mask)
    if kind == "circle":
        pen.ellipse((0, 0, big - 1, big - 1), fill=opacity)
    elif kind == "ring":
        pen.ellipse((0, 0, big - 1, big - 1), outline=opacity, width=big // 6)
    elif kind == "rectangle":
        pen.rectangle((0, 0, big - 1, flat * (big - 1)), fill=opacity)
    else:
        pen.polygon([(0, big - 1), (big - 1, big - 1), (flat * (big - 1), 0)], fill=opacity)
    rgba = np.empty((pixels, pixels, 4), np.uint8)
    rgba[..., :3] = red, green, blue
    rgba[..., 3] = np.asarray(mask.resize((pixels, pixels), Image.Resampling.BOX))
    return Shape(
        stamps.from_rgba(rgba),
        side,
        tuple(rng.uniform(0, 2, 2)),
        tuple(rng.uniform(-0.3, 0.3, 2)),
        (rng.uniform(6, 30), rng.random(), rng.uniform(0.4, 1)),
    )
