"""Relevance by re-positioned attention: a question attends to every chunk from the same distance.

In a film of hours the end is near the question and the beginning is beyond every position that the model has seen, so
that plain attention (see `attention_mass`) finds what is near. Rotations compose, so a chunk can be moved by rotating its
keys: here every chunk is scored at the position right before the question.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from pallas_kernels import attention
from pallas_kernels.attention import REFERENCE, Kernel
from pallas_kernels.kv_cache import dequantise
from vxl2_jax.cache import views
from vxl2_jax.cache.views import KVCacheView
from vxl2_jax.config import ModelConfig
from vxl2_jax.decode import empty_tail, extend, left_pad
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.relevance.chunks import ChunkSlots, HeldChunks, chunk_table, scores_of_all, shares_on_devices
from vxl2_jax.relevance.inputs import ScorerInputs
from vxl2_jax.tensor_parallel import PerDevice, mean_over_devices, program


def repositioned_attention(inputs: ScorerInputs) -> Float[np.ndarray, "B C"]:
    """Scores of each chunk, summing to 1 over the chunks; fp32.

    The question is read by itself, after the prefix. Its tokens then attend to every chunk of the sparse level,
    timestamps included, with the chunk's keys rotated to the positions right before the question: a score does not
    depend on the distance from the end of the video. Per head, a chunk's score is the largest share of attention that
    any token gives it, minus the mean share over the tokens. See `chunk_attention`.
    """
    view = views.prefix_view(inputs.memory, inputs.kernel, len(inputs.ids))
    table = chunk_table(inputs.memory, inputs.chunk_size)
    scores = chunk_attention(
        inputs.params,
        inputs.config,
        view,
        table.slots,
        inputs.ids,
        np.asarray(inputs.count, np.int32),
        width=table.width,
        chunks=table.chunks,
        shared=table.shared,
        kernel=inputs.kernel,
    )
    # With a single chunk all scores are 0.
    scores = np.maximum(np.asarray(scores)[:, : inputs.chunks], 1e-9)
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


@program(static=("config", "width", "chunks", "shared", "kernel"), results=P())
def chunk_attention(
    params: Any,
    config: ModelConfig,
    view: KVCacheView,
    slots: ChunkSlots | PerDevice,
    ids: Int[Array | np.ndarray, "B N"],
    count: Int[Array | np.ndarray, " B"],
    *,
    width: int,
    chunks: int,
    shared: int = 0,
    kernel: Kernel = REFERENCE,
) -> Float[Array, "B {chunks}"]:
    """A score per chunk of a one-stream cache, of which the questions themselves read only the prefix (`view`).

    For every layer, head and token of a question: a softmax over the chunks, each moved to the position right before
    the question. For every head: the largest share that any token gives to a chunk, minus the mean over tokens (what a
    chunk receives from all tokens says nothing about the question). Averaged over heads and layers, in fp32.

    Args:
      slots, width, chunks, shared: see `chunks.ChunkTable`; an empty chunk scores 0.
      ids: right-padded questions, of which the first `count` tokens are real.
    """
    lm, rows = config.language, ids.shape[1]
    (stream,) = view.streams
    ids, begin = left_pad(ids, count)
    capacity, weight = stream.slots, 1 / (lm.heads * lm.layers)
    held: HeldChunks | None = slots.own() if isinstance(slots, PerDevice) else None
    own: Any = slots if held is None else held.slots

    def one_launch(q: jax.Array, layer: jax.Array) -> jax.Array:
        start, end, last = own
        angles = rotation(view.position - last, lm.head_width, lm.rope_theta)
        q = q.astype(stream.query_dtype(q.dtype))
        return attention.moved_log_sum_exp(kernel, q, stream, layer, start, end, *angles, width=width)

    def chunk_by_chunk(q: jax.Array, layer: jax.Array) -> jax.Array:
        def attend(bounds: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            start, end, last = bounds
            first = jnp.minimum(start, capacity - width)

            def cut(part: jax.Array) -> jax.Array:
                return jax.lax.dynamic_slice(part, (layer, 0, first, 0), (1, lm.kv_heads, width, part.shape[-1]))[0]

            scale = None if stream.k_scale is None else cut(stream.k_scale)
            k = dequantise(cut(stream.k), scale, stream.query_dtype(q.dtype))
            k = rotate(k, *rotation((view.position - last)[None], lm.head_width, lm.rope_theta))
            index = first + jnp.arange(width)
            logits = jnp.einsum("knd,ksd->kns", q, k, preferred_element_type=jnp.float32)
            return jax.nn.logsumexp(jnp.where((index >= start) & (index < end), logits, -jnp.inf), axis=-1)

        return jax.lax.map(attend, tuple(own), batch_size=kernel.chunks_per_step)

    def score(q: jax.Array, begin: jax.Array, layer: jax.Array) -> jax.Array:
        q = rearrange(q * lm.head_width**-0.5, "n (k r) d -> k (n r) d", k=lm.kv_heads)
        found = (one_launch if kernel.moves_ranges(lm.head_width) else chunk_by_chunk)(q, layer)
        share = jax.nn.softmax(found, axis=0) if held is None else shares_on_devices(found, held, shared)
        share = rearrange(share, "c k (n r) -> c n (k r)", n=rows)
        real = (jnp.arange(rows) >= begin)[:, None]
        mean = jnp.where(real, share, 0).sum(axis=1) / jnp.maximum(rows - begin, 1)
        return jnp.sum(jnp.where(real, share, 0).max(axis=1) - mean, axis=-1) * weight

    def observe(scores: jax.Array, q: jax.Array, lse: jax.Array, layer: jax.Array) -> jax.Array:
        def one_question(args: tuple[jax.Array, jax.Array]) -> jax.Array:
            return score(*args, layer)

        # One question at a time: the logits of all of them would be large.
        return scores + jax.lax.map(one_question, (q, begin))

    zeros = jnp.zeros((len(ids), len(own.start)), jnp.float32)
    tail = empty_tail(config, view, len(ids), rows)
    first = jnp.int32(0)
    scores = extend(params, config, view, tail, begin, first, ids, observe=observe, state=zeros, kernel=kernel)[2]
    return mean_over_devices(scores if held is None else scores_of_all(scores, held, chunks), lm)
