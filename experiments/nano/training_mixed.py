"""Mixed caches for training: for every question some chunks of the video as they are, of the others only pooled keys
and values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nano import questions
from nano.training_compose import FRAMES, VISUAL
from nano.training_language import STAMP, layout

POOLS = (4, 8, 9)  # visual tokens that become one; what is left of a group's nine is dropped
CHOSEN = 0.8  # share of questions whose evidence is dense, as if chosen by attention
NONE_DENSE = 0.5  # of the others: nothing dense but the ends
ANSWERED = 0.35  # of questions whose evidence may be pooled: how many still have to be answered


def draw(rng: np.random.Generator, asked: Sequence[Sequence[questions.Question]], groups: int) -> dict[str, np.ndarray]:
    """A mixed cache for every question of every video: the first and the last chunk dense, of the others those of the
    question's evidence, or some by lot, or none.

    Returns arrays over the R questions, in order: pool fp32 [S, L], the pooled level as means of tokens; video
    int32 [R]; index int32 [R, L] into the video's L tokens followed by its S pooled ones, of which the first are
    real, bool [R, L]; answered fp32 [R], 0 where only attention should be trained.
    """
    lay, pool = layout(groups), int(rng.choice(POOLS))
    found: dict[str, list] = {"video": [], "index": [], "real": [], "answered": []}
    for video, several in enumerate(asked):
        for question in several:
            chunk = np.arange(groups) // int(rng.integers(1, 5))
            dense = np.zeros(chunk[-1] + 1, bool)
            chosen = rng.random() < CHOSEN
            if chosen:
                for start, stop in question.evidence:
                    dense[chunk[math.ceil(start) // FRAMES : (math.ceil(stop) - 1) // FRAMES + 1]] = True
            if chosen or rng.random() >= NONE_DENSE:
                dense |= rng.random(len(dense)) < rng.choice([0.0, 0.1, 0.3, 0.5])
            dense[[0, -1]] = True
            index = cache_index(groups, pool, dense[chunk])
            found["video"].append(video)
            found["index"].append(np.pad(index, (0, lay.length - len(index))))
            found["real"].append(np.arange(lay.length) < len(index))
            found["answered"].append(float(chosen or rng.random() < ANSWERED))
    types = {"video": np.int32, "index": np.int32, "real": bool, "answered": np.float32}
    return {"pool": pooling(groups, pool), **{key: np.asarray(value, types[key]) for key, value in found.items()}}


def pooling(groups: int, pool: int) -> np.ndarray:
    """fp32 [S, L]: every group's means of `pool` visual tokens in a row. S is that of the finest pooling, so that its
    shape does not depend on `pool`; the rest is zero."""
    lay, kept = layout(groups), VISUAL // pool
    means = np.zeros((groups * (VISUAL // min(POOLS)), lay.length), np.float32)
    for g in range(groups):
        first = lay.prefix + g * (STAMP + VISUAL) + STAMP
        for i in range(kept):
            means[g * kept + i, first + i * pool : first + (i + 1) * pool] = 1 / pool
    return means


def cache_index(groups: int, pool: int, dense: np.ndarray) -> np.ndarray:
    """int32: the entries of the mixed cache in order. dense: bool [G]."""
    lay, kept = layout(groups), VISUAL // pool
    parts = [np.arange(lay.prefix)]
    for g in range(groups):
        first = lay.prefix + g * (STAMP + VISUAL)
        parts.append(first + np.arange(STAMP + VISUAL if dense[g] else STAMP))
        if not dense[g]:
            parts.append(lay.length + g * kept + np.arange(kept))
    return np.concatenate(parts).astype(np.int32)
