"""Baselines: scores that ignore the question."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vxl2_jax.relevance.inputs import ScorerInputs


def uniform(inputs: ScorerInputs) -> Float[np.ndarray, "B C"]:
    """Chunks evenly spread over time first: the order of halving intervals (van der Corput)."""
    chunks = inputs.chunks
    bits = max(chunks - 1, 1).bit_length()
    order = sorted(range(2**bits), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
    rank = {chunk: place for place, chunk in enumerate(i * chunks // 2**bits for i in order[::-1])}
    return inputs.for_all(np.asarray([rank.get(chunk, -1) for chunk in range(chunks)]) / 2**bits)


def random(inputs: ScorerInputs) -> Float[np.ndarray, "B C"]:
    """Chunks at random, from the seed; the same for every question, as if it were asked alone."""
    return inputs.for_all(np.random.default_rng(inputs.seed).random(inputs.chunks))


def recent(inputs: ScorerInputs) -> Float[np.ndarray, "B C"]:
    """The latest chunks first."""
    return inputs.for_all((np.arange(inputs.chunks) + 1) / inputs.chunks)
