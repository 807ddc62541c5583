"""Where things lie in the residual stream at the start of training, and the embedding made from it.

The width is split into three parts: a *time* part (numbers as waves of many periods, so that "near in
time" is "near in angle"), a *name* part (one direction per picture), and the rest for other words. Inside the
rest, which visual tokens hardly use, lies a second place for names: what was shown before.
Training may move all of this; starting from it saves the language half its slowest discoveries.
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
PERIODS = np.concatenate([np.geomspace(5, 100, 12), np.geomspace(140, 2500, 6)])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def directions(key: int, count: int, part: slice) -> np.ndarray:
    """fp32 [count, WIDTH]: random unit rows inside a part, orthogonal where there is room for that."""
    wide = part.stop - part.start
    rows = np.random.default_rng((9, key)).normal(size=(count, wide))
    if count <= wide:
        rows = np.linalg.qr(rows.T)[0].T
    full = np.zeros((count, WIDTH), np.float32)
    full[:, part] = _unit(rows)
    return full


@functools.cache
def kinds() -> dict[str, np.ndarray]:
    """Directions that say what sort of token one is: a number, a name, a visual token, one whose picture was there
    before."""
    return dict(zip(("number", "name", "visual", "seen"), directions(0, 4, OTHER), strict=True))


@functools.cache
def previous() -> np.ndarray:
    """fp32 [64, WIDTH]: orthonormal rows in the rest, away from `kinds`: where the dimensions of a name are written
    that is not the token's own (that of the picture before, or the one whose follower is wanted)."""
    own = np.stack(list(kinds().values()))
    drawn = directions(3, NAME.stop - NAME.start, OTHER)
    return np.linalg.qr(np.concatenate([own, drawn]).T)[0].T[len(own) :].astype(np.float32)


def waves(numbers: np.ndarray) -> np.ndarray:
    """Numbers [...] → unit fp32 [..., 36]: all cosines, then all sines."""
    angle = 2 * np.pi * np.asarray(numbers)[..., None] / PERIODS
    return (np.concatenate([np.cos(angle), np.sin(angle)], -1) / WAVES**0.5).astype(np.float32)


def names() -> np.ndarray:
    """fp32 [names + 1, WIDTH]: the pictures' directions in the name part, and that of NOTHING."""
    return directions(1, len(vocabulary.name_ids()), NAME)


def visual_rows() -> np.ndarray:
    """fp32 [names + 1, WIDTH]: what a visual token that shows picture i (or nothing) should look like."""
    return 0.9 * names() + 0.4 * kinds()["visual"]


def embedding() -> np.ndarray:
    """fp32 [vocabulary, WIDTH], rows of about unit length."""
    size = len(vocabulary.words())
    table = directions(2, size, OTHER)
    table[vocabulary.name_ids()] = 0.9 * names() + 0.35 * kinds()["name"]
    numbers = vocabulary.number_ids()
    table[numbers] *= 0.2
    table[numbers] += 0.5 * kinds()["number"]
    table[numbers, TIME] = 0.8 * waves(np.arange(len(numbers)))
    return table
