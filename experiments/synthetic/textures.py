"""Seamless generated textures."""

import colorsys

import numpy as np
from PIL import Image, ImageDraw


def colour(rng: np.random.Generator, vivid: float) -> np.ndarray:
    """A random colour, float32 [3] in 0..255; `vivid` (0..1) bounds its saturation."""
    hue, saturation, value = rng.random(), vivid * rng.uniform(0.3, 1), rng.uniform(0.1, 1)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def _noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth seamless noise, float32 [size, size], mostly within 0..1, with `cells` values per side."""
    pad = 3  # a wrapped border for the interpolation makes the edges match
    grid = np.pad(rng.normal(0.5, 0.25, (cells, cells)).astype(np.float32), pad, mode="wrap")
    box = (pad, pad, pad + cells, pad + cells)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC, box=box))


def texture(rng: np.random.Generator, size: int, vivid: float) -> np.ndarray:
    """A random seamless texture repeated 2 × 2: uint8 [2 * size, 2 * size, 3]."""
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
    low, high = colour(rng, vivid), colour(rng, vivid)
    shade = 1 + rng.uniform(0, 0.5) * (_noise(rng, 4, size) - 0.5)
    grain = rng.uniform(0, 40) * (_noise(rng, 64, size) - 0.5)
    image = (low + (high - low) * field) * shade[..., None] + grain[..., None]
    image = np.clip(image, 0, 255).astype(np.uint8)
    return np.tile(image, (2, 2, 1))


def _leaves(rng: np.random.Generator, size: int, vivid: float) -> np.ndarray:
    """Seamless "dead leaves": shapes of many sizes that occlude each other, with the edge statistics of photographs."""
    image = Image.new("RGB", (size, size))
    pen = ImageDraw.Draw(image)
    few = [colour(rng, vivid) for _ in range(rng.integers(3, 9))]
    count = int(rng.integers(60, 250))
    # Most are small; large ones are drawn first.
    for radius in sorted(0.5 * rng.uniform(0.06, 1, count) ** 2 + 0.02, reverse=True):
        x, y = rng.uniform(0, size, 2)
        turn = rng.uniform(0, 2 * np.pi) + np.sort(rng.uniform(0, 2 * np.pi, rng.choice([3, 4, 4, 16])))
        reach = size * radius * rng.uniform(0.3, 1, 2)
        corners = np.stack([np.cos(turn) * reach[0], np.sin(turn) * reach[1]], 1)
        fill = tuple(int(c) for c in np.clip(few[rng.integers(len(few))] + rng.normal(0, 15, 3), 0, 255))
        for right in (x - size, x, x + size):
            for down in (y - size, y, y + size):
                if abs(right - size / 2) < size / 2 + reach[0] and abs(down - size / 2) < size / 2 + reach[1]:
                    pen.polygon([tuple(corner) for corner in corners + (right, down)], fill=fill)
    return np.asarray(image)
