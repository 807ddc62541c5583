"""Which chunks of a video a question is about: a score per chunk.

A scorer is any callable (Request) → scores [B, chunks]: higher is more relevant. `attention` and `mass` look inside
the model; the others know nothing of the question and are what they are measured against.
"""

from vxl2_jax.relevance.attention_mass import attention_mass_scores, mass_per_key
from vxl2_jax.relevance.baselines import random, recent, uniform
from vxl2_jax.relevance.repositioned import chunk_attention, chunk_slots, repositioned_attention
from vxl2_jax.relevance.request import Scorer, ScorerInputs

__all__ = [
    "SCORERS",
    "ScorerInputs",
    "Scorer",
    "mass_per_key",
    "repositioned_attention",
    "attention_mass_scores",
    "chunk_attention",
    "chunk_slots",
    "random",
    "recent",
    "uniform",
]

SCORERS: dict[str, Scorer] = {
    "attention": repositioned_attention,
    "mass": attention_mass_scores,
    "uniform": uniform,
    "random": random,
    "recent": recent,
}
