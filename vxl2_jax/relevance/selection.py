"""Which chunks are loaded dense: from scores, or from the units that the original's oracle files list."""

from __future__ import annotations

import numpy as np

GROUPS_PER_UNIT = 2
"""An oracle unit is 8 frames."""


def dense_chunks(chunks: int, chosen: np.ndarray | None) -> np.ndarray:
    """bool [chunks + 1]: prefix (0), first, last and the chosen ones. `chosen` None: every chunk."""
    dense = np.zeros(chunks + 1, bool)
    dense[[0, min(1, chunks), chunks]] = True
    if chosen is None:
        dense[:] = True
    else:
        dense[np.asarray(chosen, int)] = True
    return dense


def top_chunks(scores: np.ndarray, top_k: int) -> np.ndarray:
    """The `top_k` best-scored interior chunks, as chunk numbers from 1, in time order.

    First and last are dense anyway, so they are not counted; ties go to the earlier chunk; `top_k` is
    capped at the number of interior chunks.
    """
    interior = np.arange(2, len(scores))
    best = interior[np.argsort(-np.asarray(scores)[interior - 1], kind="stable")]
    return np.sort(best[:top_k])


def chunk_of_unit(unit: int, chunk_size: int) -> int:
    """The chunk, counted from 1, that an oracle's unit begins in: floor(2 · unit / chunk_size) + 1."""
    return GROUPS_PER_UNIT * unit // chunk_size + 1


def chunks_of_units(units: list[int], chunks: int, chunk_size: int) -> np.ndarray | None:
    """Chunk numbers of an oracle's units; None (all dense) for an empty list.

    Units past the end are ignored, so a list of only such units chooses nothing.
    """
    if not units:
        return None
    found = {chunk_of_unit(unit, chunk_size) for unit in units}
    return np.asarray(sorted(chunk for chunk in found if chunk <= chunks), int)
