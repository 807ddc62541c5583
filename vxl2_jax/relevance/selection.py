"""Which chunks are loaded dense: from scores, or from the units that the original's oracle files list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from vxl2_jax.memory import VideoMemory

GROUPS_PER_UNIT = 2
"""An oracle unit is 8 frames."""


@dataclass(frozen=True)
class ChunkSelection:
    """What one question reads of a memory.

    Attributes:
      memory: the memory, whose compression is that of the sparse chunks.
      chunk_size: groups per chunk.
      scores: relevance of each chunk.
      chosen: numbers of the chunks to load dense; chunk 0 is the prefix, the video's begin at 1. None: all.
      interior_capacity: the most chunks, besides first and last, that any question of a series loads dense: the arrays
        of all of them get room for so many, and one compiled program serves all. 0: nothing is known of other questions.
    """

    memory: VideoMemory
    chunk_size: int
    scores: Float[np.ndarray, " C"]
    chosen: Int[np.ndarray, " n"] | None
    interior_capacity: int = 0

    @cached_property
    def dense(self) -> Bool[np.ndarray, " C1"]:
        """Whether each chunk is dense, the prefix first."""
        return dense_chunks(len(self.scores), self.chosen)

    @property
    def all_dense(self) -> bool:
        """Whether the whole cache is loaded dense."""
        return bool(self.dense.all())


def dense_chunks(chunks: int, chosen: Sequence[int] | Int[np.ndarray, " n"] | None) -> Bool[np.ndarray, " C1"]:
    """Whether each chunk is dense: the prefix (chunk 0), the first, the last and the chosen ones; None: every chunk."""
    dense = np.zeros(chunks + 1, bool)
    dense[[0, min(1, chunks), chunks]] = True
    dense[... if chosen is None else np.asarray(chosen, int)] = True
    return dense


def top_chunks(scores: Float[np.ndarray, " C"], top_k: int) -> Int[np.ndarray, " k"]:
    """The `top_k` interior chunks with the highest scores, as chunk numbers from 1, in time order.

    First and last are dense anyway, so they do not count. Ties go to the earlier chunk. `top_k` is capped at the number
    of interior chunks.
    """
    interior = np.arange(2, len(scores))
    best = interior[np.argsort(-np.asarray(scores)[interior - 1], kind="stable")]
    return np.sort(best[:top_k])


def chunk_of_unit(unit: int, chunk_size: int) -> int:
    """The chunk, counted from 1, in which an oracle's unit begins: floor(2 · unit / chunk_size) + 1."""
    return GROUPS_PER_UNIT * unit // chunk_size + 1


def chunks_of_units(units: Sequence[int], chunks: int, chunk_size: int) -> Int[np.ndarray, " n"] | None:
    """Chunk numbers of an oracle's units; None (all dense) for an empty list.

    Units past the end are ignored, so a list of only such units chooses nothing.
    """
    if not units:
        return None
    found = {chunk_of_unit(unit, chunk_size) for unit in units}
    return np.asarray(sorted(chunk for chunk in found if chunk <= chunks), int)
