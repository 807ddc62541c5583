"""Directions in the residual stream of the language half, and the embedding made from them.

Of the model's width, one part is for times (numbers as waves of many periods: near in time is near in angle), one for
names (a direction for each picture), and the rest for other words. In the rest, which visual tokens hardly use, lies a
second place for names: that of the picture shown before. Training may move all of this.
"""

from __future__ import annotations

import functools

import numpy as np

from experiments.synthetic import vocabulary

WIDTH = 192
WAVES = 18
TIME = slice(0, 2 * WAVES)
NAME = slice(36, 100)
OTHER = slice(100, WIDTH)
PERIODS = np.concatenate([np.geomspace(5, 100, 12), np.geomspace(140, 2500, 6)])  # seconds


def directions(key: int, count: int, part: slice = OTHER, width: int = WIDTH) -> np.ndarray:
    """float32 [count, width]: random unit rows inside a part, orthogonal if there is room for that."""
    size = part.stop - part.start
    rows = np.random.default_rng((9, key)).normal(size=(count, size))
    if count <= size:
        rows = np.linalg.qr(rows.T)[0].T
    full = np.zeros((count, width), np.float32)
    full[:, part] = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return full


@functools.cache
def kinds() -> dict[str, np.ndarray]:
    """Directions of kinds of tokens: a number, a name, a visual token, a visual token whose picture was there before."""
    return dict(zip(("number", "name", "visual", "seen"), directions(0, 4), strict=True))


@functools.cache
def previous() -> np.ndarray:
    """float32 [64, WIDTH]: orthonormal rows in the rest, orthogonal to `kinds`: where the name part of another token is
    written (that of the picture before, or of the name whose follower is wanted)."""
    own = np.stack(list(kinds().values()))
    return np.linalg.qr(np.concatenate([own, directions(3, NAME.stop - NAME.start)]).T)[0].T[len(own) :]


def names() -> np.ndarray:
    """float32 [names + 1, WIDTH]: of each picture and of NOTHING, in the name part."""
    return directions(1, len(vocabulary.name_ids()), NAME)


def visual_tokens() -> np.ndarray:
    """float32 [names + 1, WIDTH]: what a visual token that shows picture i (or nothing) should be."""
    return 0.9 * names() + 0.4 * kinds()["visual"]


def embedding() -> np.ndarray:
    """float32 [vocabulary, WIDTH], rows of about unit length."""
    table, numbers = directions(2, len(vocabulary.words())), vocabulary.number_ids()
    table[vocabulary.name_ids()] = 0.9 * names() + 0.35 * kinds()["name"]
    angle = 2 * np.pi * np.arange(len(numbers))[:, None] / PERIODS
    table[numbers] = 0.2 * table[numbers] + 0.5 * kinds()["number"]
    table[numbers, TIME] = 0.8 * np.concatenate([np.cos(angle), np.sin(angle)], -1) / WAVES**0.5
    return table
