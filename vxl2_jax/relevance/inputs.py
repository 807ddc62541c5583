"""What a scorer gets, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pallas_kernels.attention import REFERENCE, Kernel
from vxl2_jax.config import ModelConfig
from vxl2_jax.memory import VideoMemory


@dataclass(frozen=True)
class ScorerInputs:
    """The inputs of a scorer.

    Attributes:
      params, config: the model.
      memory: what the questions are about.
      ids: token ids of B right-padded questions; a row without tokens fills up the batch.
      count: how many tokens of each question are real.
      chunk_size: groups per chunk.
      seed: of random scores.
      kernel: the attention kernel.
    """

    params: Any
    config: ModelConfig
    memory: VideoMemory
    ids: Int[np.ndarray, "B N"]
    count: Int[np.ndarray, " B"]
    chunk_size: int
    seed: int = 0
    kernel: Kernel = REFERENCE

    @property
    def chunks(self) -> int:
        """Number of chunks (C)."""
        return self.memory.layout.chunks(self.chunk_size)

    def for_all(self, scores: Float[np.ndarray, " C"]) -> Float[np.ndarray, "B C"]:
        """The same scores for every question."""
        return np.tile(np.asarray(scores, np.float32), (len(self.ids), 1))


Scorer = Callable[[ScorerInputs], np.ndarray]
"""Returns fp32 scores [B, C]; higher is more relevant."""


class RegisteredScorer(NamedTuple):
    """A scorer and what it ranks chunks by, as help texts say it."""

    score: Scorer
    summary: str
