"""Relevance by attention mass: all that a question's pass over the whole sparse level attends to, added up.

The plain way. Unfocused heads drown the sharp ones, and the farther a chunk is from the end the less it gets.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import attention
from pallas_kernels.attention import REFERENCE, Kernel
from vxl2_jax.cache import views
from vxl2_jax.config import ModelConfig
from vxl2_jax.decode import KVCacheView, empty_tail, extend, left_pad
from vxl2_jax.relevance.request import ScorerInputs


def attention_mass_scores(request: ScorerInputs) -> np.ndarray:
    """Share of a question's attention that each chunk receives, summing to 1 over the chunks.

    One pass of all questions over the sparse level, a cheap view of the whole video; the attention of all
    layers, heads and tokens of a question on a chunk's tokens, timestamps included, is added up.
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
    base, count = views.sparse_view(memory, request.kernel, len(request.ids)), np.asarray(request.count, np.int32)
    mass = np.asarray(mass_per_key(request.params, request.config, base, request.ids, count, request.kernel))
    scores = np.stack([np.bincount(owner, weights=one, minlength=request.chunks + 1)[1:] for one in mass])
    return (scores / np.maximum(scores.sum(axis=1, keepdims=True), 1e-30)).astype(np.float32)


@partial(jax.jit, static_argnames=("config", "kernel"))
def mass_per_key(
    params: Any, config: ModelConfig, base: KVCacheView, ids: jax.Array, count: jax.Array, kernel: Kernel = REFERENCE
) -> jax.Array:
    """Attention that each key of a shared one-stream base, read from its start, receives from each question, averaged
    over layers, heads and the question's `count` real tokens. Shapes: ids int32 [B, N], count [B] → fp32 [B, S]."""
    (questions, rows), lm = ids.shape, config.language
    (stream,) = base.streams
    ids, begin = left_pad(ids, count)
    real = jnp.arange(rows) >= begin[:, None]
    share = real / (jnp.maximum(count, 1)[:, None] * lm.heads * lm.layers)
    weights = jnp.broadcast_to(share.astype(jnp.float32)[..., None], (questions, rows, lm.heads))
    k_end = jnp.where(real, base.position, 0)  # slots of a one-stream base are positions
    # A CPU wants logits that stay in its cache, an accelerator few and large steps.
    tile = 512 if kernel.name == "reference" else 8192

    def observe(mass, q, lse, layer):
        def one(args):
            return attention.key_mass(args[0], stream, *args[1:], layer=layer, key_tile=tile)

        # Question by question: logits of all at once would be large.
        return mass + jax.lax.map(one, (q, k_end, lse, weights))

    nothing = jnp.zeros((questions, stream.k.shape[2]), jnp.float32)
    tail = empty_tail(config, base, questions, rows)
    return extend(params, config, base, tail, begin, jnp.int32(0), ids, observe=observe, seen=nothing, kernel=kernel)[2]
