"""Which chunks are loaded dense: from scores, or from the original's oracle files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vxl2_jax.errors import RequestError

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


def chunks_of_units(units: list[int], chunks: int, chunk_size: int) -> np.ndarray | None:
    """Chunk numbers of an oracle's units; None (all dense) for an empty list.

    Unit u lies in chunk floor(2u / chunk_size) + 1; units past the end are ignored, so a list of only
    such units chooses nothing.
    """
    if not units:
        return None
    found = {GROUPS_PER_UNIT * unit // chunk_size + 1 for unit in units}
    return np.asarray(sorted(chunk for chunk in found if chunk <= chunks), int)


@dataclass(frozen=True)
class OracleChoice:
    """What an oracle file says of one question. `units` None: plain dense pre-fill, another memory."""

    units: tuple[int, ...] | None
    chunk_size: int | None = None
    compression: int | None = None


def read_oracle(path: str | Path) -> dict[str, OracleChoice]:
    """The original's ranking file → choice per key "<video file name>_<question>" over all categories.

    A category that is null holds no keys and means plain dense: look its questions up with `.get`.
    Raises RequestError for a file that is not of the form.
    """
    try:
        categories = json.loads(Path(path).read_text())
        found = {}
        for category in categories.values():
            if category is None:
                continue
            config = category.get("config") or {}
            for key, units in category["selected_unit_indices"].items():
                found[key] = OracleChoice(
                    None if units is None else tuple(int(u) for u in units),
                    config.get("selected_chunk_size"), config.get("compression"),
                )
        return found
    except OSError as error:
        raise RequestError(f"{path}: cannot read the oracle file ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path}: not an oracle file of the original ({error!r})") from error
