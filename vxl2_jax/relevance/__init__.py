"""Which chunks of a video a question is about: a score per chunk.

A scorer is a callable (ScorerInputs) → fp32 scores [B, C]; higher is more relevant. To add one, write it in a module of
its own and register it in `SCORERS`. `attention` and `mass` use the model's attention; the others ignore the question and
are baselines.
"""

from vxl2_jax.relevance.attention_mass import attention_mass_scores, mass_per_key
from vxl2_jax.relevance.baselines import random, recent, uniform
from vxl2_jax.relevance.chunks import chunk_table
from vxl2_jax.relevance.inputs import RegisteredScorer, Scorer, ScorerInputs
from vxl2_jax.relevance.repositioned import chunk_attention, repositioned_attention

__all__ = [
    "SCORERS",
    "RegisteredScorer",
    "ScorerInputs",
    "Scorer",
    "mass_per_key",
    "repositioned_attention",
    "attention_mass_scores",
    "chunk_attention",
    "chunk_table",
    "random",
    "recent",
    "uniform",
]

SCORERS: dict[str, RegisteredScorer] = {
    "attention": RegisteredScorer(repositioned_attention, "the question's attention, each chunk moved next to it"),
    "mass": RegisteredScorer(attention_mass_scores, "the question's attention, each chunk at its own position"),
    "uniform": RegisteredScorer(uniform, "evenly spread"),
    "random": RegisteredScorer(random, "at random"),
    "recent": RegisteredScorer(recent, "the latest first"),
}
"""The scorers by the name that `relevance` takes."""
