"""Moving, textured backgrounds made from a seed, cheap to draw at any time.

A generated background is two seamless textures that slide and fade into each other, with a few plain
shapes bouncing over them. The shapes come and go as the named pictures do, so that "something
appeared" is not enough to answer a question. Instead there may be real footage; that of the training set is scarce,
so some of it is shown through generated textures or other footage, or behind shapes and pieces of other footage.
"""

import colorsys
import functools
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from experiments.synthetic import footage as films
from experiments.synthetic import stamps


class Shape(NamedTuple):
    """A bouncing plain shape; positions are fractions of the frame, speeds per second."""

    stamp: stamps.Stamp
    side: float
    phase: tuple[float, float]
    speed: tuple[float, float]
    blink: tuple[float, float, float]  # period in seconds, phase, share of the period shown


class Piece(NamedTuple):
    """A bouncing square of other footage, measured as a Shape is."""

    side: float
    phase: tuple[float, float]
    speed: tuple[float, float]


class Background(NamedTuple):
    """What `draw` needs, prepared for one frame size.

    Attributes:
      tiles: two uint8 [2 * size, 2 * size, 3], each a seamless texture repeated twice either way,
        so that any shift is one plain crop.
      speed: [2, 2], how many frame sides each texture slides per second (down, right).
      fade: middle, swing and period (seconds) of the first texture's weight.
      shapes: what bounces on top.
    """

    tiles: tuple[np.ndarray, np.ndarray]
    speed: np.ndarray
    fade: tuple[float, float, float]
    shapes: tuple[Shape, ...]


def draw(seed: int, t: float, size: int, footage: str = "") -> np.ndarray:
    """The background of `seed` at second `t`: uint8 [size, size, 3], a fresh array.

    With `footage` "train" or "test" it is a film of that set (see footage.py), of the training set at times disturbed.
    """
    if not footage:
        ground = _prepare(seed, size)
        return _lay_shapes(_textures(ground, t, size), ground.shapes, t)
    frame = films.draw(seed, t, size, footage)
    if footage == "train":
        over, share, shapes, pieces = _disturbance(seed)
        if over == "textures":
            frame = _mix(frame, _textures(_prepare(seed, size), t, size), share)
        elif over == "footage":
            frame = _mix(frame, films.draw(seed + 1, t, size, footage), share)
        for i, piece in enumerate(pieces):
            left, top = _place(piece, t, size)
            side = round(piece.side * size)
            frame[top : top + side, left : left + side] = films.draw(seed + 2 + i, t, side, footage)
        if shapes:
            frame = _lay_shapes(frame, _prepare(seed, size).shapes, t)
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
    """`share` of one picture and the rest of the other: uint8, as they are."""
    weight = int(256 * share)
    mixed = one * np.uint16(weight)
    mixed += other * np.uint16(256 - weight)
    mixed >>= 8
    return mixed.astype(np.uint8)


def _lay_shapes(frame: np.ndarray, shapes: tuple[Shape, ...], t: float) -> np.ndarray:
    """`frame`, changed in place, with the shapes that are to be seen at second `t`."""
    size = len(frame)
    for shape in shapes:
        period, phase, share = shape.blink
        if (t / period + phase) % 1 < share:
            stamps.paste(frame, shape.stamp, *_place(shape, t, size))
    return frame


def _place(thing: Shape | Piece, t: float, size: int) -> tuple[int, int]:
    """Left and top edge, in pixels, of what bounces about inside the frame."""
    left, top = (size * (1 - thing.side) * _bounce(p + v * t) for p, v in zip(thing.phase, thing.speed, strict=True))
    return int(round(left)), int(round(top))


@functools.lru_cache(maxsize=32)
def _disturbance(seed: int) -> tuple[str, float, bool, tuple[Piece, ...]]:
    """What lies over training footage: "", "textures" or "footage"; the share that stays; whether shapes do; and the
    pieces of other footage that do."""
    rng = np.random.default_rng((seed, 6))
    over = rng.choice(["", "textures", "footage"], p=[0.5, 0.3, 0.2])
    share, shapes = rng.uniform(0.35, 0.85), bool(rng.random() < 0.4)
    count = rng.integers(1, 6) if rng.random() < 0.4 else 0
    pieces = (Piece(rng.uniform(0.15, 0.6), rng.uniform(0, 2, 2), rng.uniform(-0.3, 0.3, 2)) for _ in range(count))
    return str(over), share, shapes, tuple(pieces)


def _bounce(x: float) -> float:
    """Runs from 0 to 1 and back with period 2."""
    return 1 - abs(x % 2 - 1)


@functools.lru_cache(maxsize=32)
def _prepare(seed: int, size: int) -> Background:
    # Every size draws the same numbers in the same order, so a clip looks alike at all sizes.
    rng = np.random.default_rng(seed)
    vivid = rng.uniform(0.1, 1)
    tiles = tuple(_texture(np.random.default_rng(s), size, vivid) for s in rng.integers(2**62, size=2))
    speed = rng.uniform(-0.15, 0.15, (2, 2))
    middle = rng.uniform(0.3, 0.7)
    fade = (middle, rng.uniform(0.05, 0.3), rng.uniform(5, 30))
    shapes = tuple(_shape(rng, size) for _ in range(rng.integers(0, 5)))
    return Background(tiles, speed, fade, shapes)


def _colour(rng: np.random.Generator, vivid: float) -> np.ndarray:
    """A random colour, float32 [3] in 0..255; `vivid` (0..1) bounds its saturation."""
    hue, saturation, value = rng.random(), vivid * rng.uniform(0.3, 1), rng.uniform(0.1, 1)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def _noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth seamless noise, float32 [size, size], mostly within 0..1; `cells` bumps a side."""
    pad = 3  # wrapped border that the smoothing reaches into: this makes the edges meet
    grid = np.pad(rng.normal(0.5, 0.25, (cells, cells)).astype(np.float32), pad, mode="wrap")
    box = (pad, pad, pad + cells, pad + cells)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC, box=box))


def _texture(rng: np.random.Generator, size: int, vivid: float) -> np.ndarray:
    """One seamless texture repeated twice either way: uint8 [2 * size, 2 * size, 3]."""
    kind = rng.choice(["gradient", "clouds", "stripes", "checker", "blobs", "leaves"], p=[0.14] * 5 + [0.3])
    turn = np.arange(size, dtype=np.float32) * np.float32(2 * np.pi / size)
    # Whole numbers of waves across the frame keep the texture seamless.
    if kind == "leaves":
        return np.tile(_leaves(rng, size, vivid), (2, 2, 1))
    if kind == "gradient":
        down, right = rng.integers(-1, 2), rng.integers(1, 3)
        field = 0.5 + 0.5 * np.sin(down * turn[:, None] + right * turn)
    elif kind == "clouds":
        field = _noise(rng, int(rng.integers(3, 9)), size)
    elif kind == "stripes":
        down, right = rng.integers(-8, 9), rng.integers(2, 9)
        field = 0.5 + rng.uniform(0.5, 4) * np.sin(down * turn[:, None] + right * turn)
    elif kind == "checker":
        waves = rng.integers(1, 6, size=2)
        field = 0.5 + 4 * np.sin(waves[0] * turn)[:, None] * np.sin(waves[1] * turn)
    else:
        field = 0.5 + 5 * (_noise(rng, int(rng.integers(3, 10)), size) - 0.5)
    field = np.clip(field, 0, 1)[..., None]
    low, high = _colour(rng, vivid), _colour(rng, vivid)
    shade = 1 + rng.uniform(0, 0.5) * (_noise(rng, 4, size) - 0.5)
    grain = rng.uniform(0, 40) * (_noise(rng, 64, size) - 0.5)
    image = (low + (high - low) * field) * shade[..., None] + grain[..., None]
    image = np.clip(image, 0, 255).astype(np.uint8)
    return np.tile(image, (2, 2, 1))


def _leaves(rng: np.random.Generator, size: int, vivid: float) -> np.ndarray:
    """Dead leaves, seamless: things of many sizes that hide each other, as edges in photographs come about."""
    image = Image.new("RGB", (size, size))
    pen = ImageDraw.Draw(image)
    few = [_colour(rng, vivid) for _ in range(rng.integers(3, 9))]
    count = int(rng.integers(60, 250))
    # Most are small; the large ones are drawn first.
    for radius in sorted(0.5 * rng.uniform(0.06, 1, count) ** 2 + 0.02, reverse=True):
        x, y = rng.uniform(0, size, 2)
        turn = rng.uniform(0, 2 * np.pi) + np.sort(rng.uniform(0, 2 * np.pi, rng.choice([3, 4, 4, 16])))
        reach = size * radius * rng.uniform(0.3, 1, 2)
        corners = np.stack([np.cos(turn) * reach[0], np.sin(turn) * reach[1]], 1)
        colour = tuple(int(c) for c in np.clip(few[rng.integers(len(few))] + rng.normal(0, 15, 3), 0, 255))
        for right in (x - size, x, x + size):
            for down in (y - size, y, y + size):
                if abs(right - size / 2) < size / 2 + reach[0] and abs(down - size / 2) < size / 2 + reach[1]:
                    pen.polygon([tuple(corner) for corner in corners + (right, down)], fill=colour)
    return np.asarray(image)


def _shape(rng: np.random.Generator, size: int) -> Shape:
    """A circle, ring, rectangle or triangle in one random colour."""
    kind = rng.choice(["circle", "ring", "rectangle", "triangle"])
    side, flat = rng.uniform(0.08, 0.28), rng.uniform(0.4, 1)
    red, green, blue = (int(c) for c in _colour(rng, 1))
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
