"""Which chunks of a video a question is about: a score per chunk.

A scorer is any callable (Request) → scores [chunks]: higher is more relevant. The attention scorer
looks inside the model; the others know nothing of the question and are what it is measured against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import attention
from pallas_kernels.attention import REFERENCE, Kernel
from vxl2_jax import bases
from vxl2_jax.config import ModelConfig
from vxl2_jax.decode import Base, empty_tail, extend
from vxl2_jax.memory import VideoMemory


@dataclass(frozen=True)
class Request:
    """What a scorer gets: the model, the memory, the question's padded ids and their number, the chunk size,
    the seed of a lot, the attention kernel."""

    params: Any
    config: ModelConfig
    memory: VideoMemory
    ids: np.ndarray
    count: int
    chunk_size: int
    seed: int = 0
    kernel: Kernel = REFERENCE

    @property
    def chunks(self) -> int:
        return self.memory.layout.chunks(self.chunk_size)


Scorer = Callable[[Request], np.ndarray]


def uniform(request: Request) -> np.ndarray:
    """Chunks evenly spread over time first: the order of halving intervals (van der Corput)."""
    n = request.chunks
    bits = max(n - 1, 1).bit_length()
    order = sorted(range(2**bits), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
    rank = {chunk: place for place, chunk in enumerate(c * n // 2**bits for c in order[::-1])}
    return np.asarray([rank.get(chunk, -1) for chunk in range(n)], np.float32) / 2**bits


def random(request: Request) -> np.ndarray:
    """Chunks by lot, from the request's seed."""
    return np.random.default_rng(request.seed).random(request.chunks).astype(np.float32)


def recent(request: Request) -> np.ndarray:
    """The latest chunks first."""
    return (np.arange(request.chunks) + 1).astype(np.float32) / request.chunks


def by_attention(request: Request) -> np.ndarray:
    """Share of the question's attention that each chunk receives, summing to 1 over the chunks.

    One pass of the question over the sparse level, a cheap view of the whole video; the attention of all
    layers, heads and question tokens on a chunk's tokens, timestamps included, is added up.
    """
    memory = request.memory
    kept = memory.layout.visual // memory.compression
    chunk_of_group = memory.layout.chunk_of_group(request.chunk_size)
    room = memory.sparse.k.shape[2]
    owner = np.zeros(room, np.int32)  # chunk 0, the prefix, also takes the padding
    global_owner = chunk_of_group[memory.layout.global_groups]
    global_owner[: memory.layout.prefix] = 0
    owner[memory.layout.global_positions(kept)] = global_owner
    owner[memory.layout.visual_positions(kept)] = np.repeat(chunk_of_group, kept)
    base, kernel = bases.sparse_base(memory, request.kernel), request.kernel
    mass = np.asarray(attention_mass(request.params, request.config, base, request.ids, np.int32(request.count), kernel))
    scores = np.bincount(owner, weights=mass, minlength=request.chunks + 1)[1:]
    return (scores / max(scores.sum(), 1e-30)).astype(np.float32)


SCORERS: dict[str, Scorer] = {"attention": by_attention, "uniform": uniform, "random": random, "recent": recent}


@partial(jax.jit, static_argnames=("config", "kernel"))
def attention_mass(
    params: Any, config: ModelConfig, base: Base, ids: jax.Array, count: jax.Array, kernel: Kernel = REFERENCE
) -> jax.Array:
    """Attention that each key of a one-stream base, read from its start, receives from a question, averaged
    over layers, heads and the `count` real tokens. Shapes: ids int32 [N] → fp32 [S]."""
    rows, lm = ids.shape[0], config.language
    (stream,) = base.streams
    length = base.position  # slots of a one-stream base are positions
    share = (jnp.arange(rows) < count).astype(jnp.float32) / (count * lm.heads * lm.layers)
    weights = jnp.broadcast_to(share[:, None], (rows, lm.heads))

    stops = jnp.full(rows, length)
    # A CPU wants logits that stay in its cache, an accelerator few and large steps.
    tile = 512 if kernel.name == "reference" else 8192

    def observe(mass, q, lse, layer):
        return mass + attention.key_mass(q, stream, stops, lse, weights, layer=layer, key_tile=tile)

    nothing = jnp.zeros(stream.k.shape[2], jnp.float32)
    tail = empty_tail(config, base, rows)
    return extend(params, config, base, tail, jnp.int32(0), ids, observe=observe, seen=nothing, kernel=kernel)[2]
