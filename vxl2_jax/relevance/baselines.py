"""Scores that know nothing of the question: what the others are measured against."""

from __future__ import annotations

import numpy as np

from vxl2_jax.relevance.request import ScorerInputs


def uniform(request: ScorerInputs) -> np.ndarray:
    """Chunks evenly spread over time first: the order of halving intervals (van der Corput)."""
    n = request.chunks
    bits = max(n - 1, 1).bit_length()
    order = sorted(range(2**bits), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
    rank = {chunk: place for place, chunk in enumerate(c * n // 2**bits for c in order[::-1])}
    return request.for_all(np.asarray([rank.get(chunk, -1) for chunk in range(n)]) / 2**bits)


def random(request: ScorerInputs) -> np.ndarray:
    """Chunks by lot, from the request's seed: the same lot for every question, as if it were asked alone."""
    return request.for_all(np.random.default_rng(request.seed).random(request.chunks))


def recent(request: ScorerInputs) -> np.ndarray:
    """The latest chunks first."""
    return request.for_all((np.arange(request.chunks) + 1) / request.chunks)
