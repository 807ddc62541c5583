"""Mixed caches for training: for every question some chunks of the video as they are, of the others only pooled keys
and values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from experiments.nano.training_compose import FRAMES
from experiments.nano.training_language import layout
from experiments.synthetic import questions
from vxl2_jax.cache.plan import SPARSE, plan_segments
from vxl2_jax.layout import Layout
from vxl2_jax.relevance.selection import dense_chunks

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
            chunk_size = int(rng.integers(1, 5))
            chunk = lay.chunk_of_group(chunk_size) - 1
            dense = np.zeros(lay.chunks(chunk_size), bool)
            chosen = rng.random() < CHOSEN
            if chosen:
                for start, stop in question.evidence:
                    dense[chunk[math.ceil(start) // FRAMES : (math.ceil(stop) - 1) // FRAMES + 1]] = True
            if chosen or rng.random() >= NONE_DENSE:
                dense |= rng.random(len(dense)) < rng.choice([0.0, 0.1, 0.3, 0.5])
            index = cache_index(lay, pool, chunk_size, dense_chunks(len(dense), np.flatnonzero(dense) + 1))
            found["video"].append(video)
            found["index"].append(np.pad(index, (0, lay.length - len(index))))
            found["real"].append(np.arange(lay.length) < len(index))
            found["answered"].append(float(chosen or rng.random() < ANSWERED))
    types = {"video": np.int32, "index": np.int32, "real": bool, "answered": np.float32}
    return {"pool": pooling(lay, pool), **{key: np.asarray(value, types[key]) for key, value in found.items()}}


def pooling(lay: Layout, pool: int) -> np.ndarray:
    """fp32 [S, L]: every group's means of `pool` visual tokens in a row. S is that of the finest pooling, so that its
    shape does not depend on `pool`; the rest is zero."""
    kept = lay.pooled(pool)
    means = np.zeros((lay.groups * lay.pooled(min(POOLS)), lay.length), np.float32)
    windows = lay.visual_positions().reshape(lay.groups, lay.visual)[:, : kept * pool].reshape(-1, pool)
    means[np.arange(len(windows))[:, None], windows] = 1 / pool
    return means


def cache_index(lay: Layout, pool: int, chunk_size: int, dense: np.ndarray) -> np.ndarray:
    """int32: the entries of the mixed cache in order. dense: bool [C + 1], the prefix first."""
    sparse = np.zeros(lay.sparse_length(pool), np.int32)  # what each slot of the sparse level holds
    sparse[lay.global_positions(pool)] = lay.global_positions()
    pooled = lay.visual_positions(pool)
    sparse[pooled] = lay.length + np.arange(len(pooled))
    segments = plan_segments(lay, pool, chunk_size, dense)
    # The position of a dense token is the sum of the visual and the global tokens before it.
    dense_start, dense_end = (bound[:SPARSE].sum(axis=0) for bound in (segments.k_start, segments.k_end))
    parts = []
    for start, end, sparse_start, sparse_end in zip(
        dense_start, dense_end, segments.k_start[SPARSE], segments.k_end[SPARSE], strict=True
    ):
        parts += [np.arange(start, end), sparse[sparse_start:sparse_end]]
    return np.concatenate(parts).astype(np.int32)
