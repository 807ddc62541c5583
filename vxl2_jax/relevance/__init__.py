"""Which chunks of a video a question is about: a score per chunk.

A scorer is a callable (ScorerInputs) → scores [B, C]; higher is more relevant. To add one, write it in a module of its
own and register it in `SCORERS`. `attention` and `mass` use the model's attention; the others ignore the question and are
baselines.
"""

from vxl2_jax.relevance.attention_mass import attention_mass_scores, mass_per_key
from vxl2_jax.relevance.baselines import random, recent, uniform
from vxl2_jax.relevance.inputs import Scorer, ScorerInputs
from vxl2_jax.relevance.repositioned import chunk_attention, chunk_slots, repositioned_attention

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
