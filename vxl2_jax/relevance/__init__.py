"""Which chunks of a video a question is about: a score per chunk.

A scorer is any callable (Request) → scores [B, chunks]: higher is more relevant. `attention` and `mass` look inside
the model; the others know nothing of the question and are what they are measured against.
"""

from vxl2_jax.relevance.baselines import random, recent, uniform
from vxl2_jax.relevance.looking import by_attention, chunk_attention, chunk_slots
from vxl2_jax.relevance.mass import attention_mass, by_mass
from vxl2_jax.relevance.request import Request, Scorer

__all__ = [
    "SCORERS",
    "Request",
    "Scorer",
    "attention_mass",
    "by_attention",
    "by_mass",
    "chunk_attention",
    "chunk_slots",
    "random",
    "recent",
    "uniform",
]

SCORERS: dict[str, Scorer] = {
    "attention": by_attention,
    "mass": by_mass,
    "uniform": uniform,
    "random": random,
    "recent": recent,
}
