"""What a scorer gets, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.attention import REFERENCE, Kernel
from vxl2_jax.config import ModelConfig
from vxl2_jax.memory import VideoMemory


@dataclass(frozen=True)
class ScorerInputs:
    """What a scorer gets: the model, the memory, the questions' padded ids int32 [B, N] and how many of each are real
    [B], the chunk size, the seed of a lot, the attention kernel."""

    params: Any
    config: ModelConfig
    memory: VideoMemory
    ids: np.ndarray
    count: np.ndarray
    chunk_size: int
    seed: int = 0
    kernel: Kernel = REFERENCE

    @property
    def chunks(self) -> int:
        return self.memory.layout.chunks(self.chunk_size)

    def for_all(self, scores: np.ndarray) -> np.ndarray:
        """Scores [chunks] that are the same for every question: [B, chunks]."""
        return np.tile(np.asarray(scores, np.float32), (len(self.ids), 1))


Scorer = Callable[[ScorerInputs], np.ndarray]
