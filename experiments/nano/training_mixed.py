"""Mixed caches for training: some chunks of the video as they are, of the others only pooled keys and values."""

from __future__ import annotations

import numpy as np

from nano.training_language import STAMP, VISUAL, layout

POOL = 4  # visual tokens that become one; what is left of a group's nine is dropped


def draw(rng: np.random.Generator, batch: dict, groups: int) -> dict[str, np.ndarray]:
    """A mixed cache per video: the first and the last chunk dense, of the others a random part.

    Returns what `training_language.forward` calls `mixed`, with M = L, the unused tail unreal.
    """
    lay, size = layout(groups), len(batch["ids"])
    length = lay.length
    mix = np.zeros((size, length, length), np.float32)
    real = np.zeros((size, length), bool)
    base = np.zeros(size, np.int32)
    for b in range(size):
        chunk = np.arange(groups) // int(rng.integers(1, 5))
        dense = rng.random(chunk[-1] + 1) < rng.choice([0.0, 0.25, 0.5])
        dense[[0, -1]] = True
        rows = [[i] for i in range(lay.prefix)]
        for g in range(groups):
            start = lay.prefix + g * (STAMP + VISUAL)
            rows += [[start + i] for i in range(STAMP)]
            seen = np.arange(start + STAMP, start + STAMP + VISUAL)
            if dense[chunk[g]]:
                rows += [[i] for i in seen]
            else:
                rows += [list(seen[i : i + POOL]) for i in range(0, VISUAL - POOL + 1, POOL)]
        for m, row in enumerate(rows):
            mix[b, m, row] = 1 / len(row)
        real[b, : len(rows)], base[b] = True, len(rows)
    position = np.broadcast_to(np.arange(length, dtype=np.int32), (size, length))
    return {"mix": mix, "real": real, "position": position, "base": base}
