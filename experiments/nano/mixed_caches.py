"""Bi-level caches for training: each question sees some chunks of its video dense, of the others pooled keys and values."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from experiments.nano.composed import layout
from experiments.nano.frames import FRAMES
from experiments.synthetic.questions import Question
from vxl2_jax.cache.plan import plan_segments
from vxl2_jax.layout import Layout
from vxl2_jax.relevance.selection import dense_chunks

COMPRESSIONS = (4, 8, 9)
RELEVANT = 0.8  # fraction of questions whose evidence is dense, as if attention had chosen it
ENDS_ONLY = 0.5  # of the others: only the first and the last chunk are dense
ANSWERED = (
    0.35  # of questions whose evidence may be pooled: how many have to be answered; the others train attention only
)


class Visible(NamedTuple):
    """What R questions see of L tokens of prefix and video, and of S pooled ones.

    Shapes: pool float32 [S, L], means of tokens; allowed bool [R, L + S]; positions int32 [R, L + S]; base int32 [R], the
    position of the question's first token.
    """

    pool: np.ndarray
    allowed: np.ndarray
    positions: np.ndarray
    base: np.ndarray


def whole(groups: int, rows: int) -> Visible:
    """The dense cache."""
    length = layout(groups).length
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return Visible(
        np.zeros((0, length), np.float32), np.ones((rows, length), bool), positions, np.full(rows, length, np.int32)
    )


def draw(rng: np.random.Generator, asked: list[Question], groups: int) -> tuple[Visible, np.ndarray]:
    """A mixed cache for each question, and which of them have to be answered, bool [R].

    The first and the last chunk are dense; of the others the chunks of the evidence and random ones, random ones, or none.
    """
    lay, compression = layout(groups), int(rng.choice(COMPRESSIONS))
    seen, answered = [], []
    for question in asked:
        chunk_size = int(rng.integers(1, 5))
        chunks = lay.chunk_of_group(chunk_size) - 1
        dense = np.zeros(lay.chunks(chunk_size), bool)
        relevant = rng.random() < RELEVANT
        if relevant:
            for start, stop in question.evidence:
                dense[chunks[math.ceil(start) // FRAMES : (math.ceil(stop) - 1) // FRAMES + 1]] = True
        if relevant or rng.random() >= ENDS_ONLY:
            dense |= rng.random(len(dense)) < rng.choice([0.0, 0.1, 0.3, 0.5])
        seen.append(see(lay, compression, chunk_size, dense_chunks(len(dense), np.flatnonzero(dense) + 1)))
        answered.append(relevant or rng.random() < ANSWERED)
    return Visible(pooling(lay, compression), *map(np.stack, zip(*seen, strict=True))), np.array(answered)


def pooling(lay: Layout, compression: int) -> np.ndarray:
    """float32 [S, L]: means of `compression` visual tokens of a group. The shape is that of the smallest compression, so
    that all compile to one program; the other rows are zero."""
    kept = lay.pooled(compression)
    means = np.zeros((lay.groups * lay.pooled(min(COMPRESSIONS)), lay.length), np.float32)
    windows = lay.visual_positions().reshape(lay.groups, lay.visual)[:, : kept * compression].reshape(-1, compression)
    means[np.arange(len(windows))[:, None], windows] = 1 / compression
    return means


def see(lay: Layout, compression: int, chunk_size: int, dense: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.int32]:
    """(allowed, positions, base) of one question. dense: bool [C + 1], the prefix first."""
    pooled, stamps = lay.visual_positions(compression), lay.global_positions(compression)
    slots = np.zeros(lay.sparse_length(compression), np.int64)  # the row that each slot of the sparse level holds
    slots[pooled], slots[stamps] = lay.length + np.arange(len(pooled)), lay.global_positions()
    rows = (lay.visual_positions(), lay.global_positions(), slots)
    old = (lay.visual_positions(), lay.global_positions(), np.arange(len(slots)))
    count = lay.length + lay.groups * lay.pooled(min(COMPRESSIONS))
    allowed, positions = np.zeros(count, bool), np.zeros(count, np.int32)
    segments = plan_segments(lay, compression, chunk_size, dense)
    for stream in range(3):
        for start, end, shift in zip(segments.k_start[stream], segments.k_end[stream], segments.shift, strict=True):
            here = rows[stream][start:end]
            allowed[here], positions[here] = True, old[stream][start:end] + shift
    return allowed, positions, np.int32(allowed.sum())
