"""Relevance by attention at one distance: a question looks at every chunk as though it lay right before it.

In a film of hours the end is near and the beginning is beyond all positions a model has seen, so the plain way (see
`mass`) finds what is near. Rotations compose: turning a chunk's keys moves it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from pallas_kernels.attention import REFERENCE, Kernel
from vxl2_jax.buckets import bucket
from vxl2_jax.cache import views
from vxl2_jax.config import ModelConfig
from vxl2_jax.decode import KVCacheView, empty_tail, extend, left_pad
from vxl2_jax.memory import VideoMemory
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.relevance.request import ScorerInputs


def repositioned_attention(request: ScorerInputs) -> np.ndarray:
    """How much more a question's words look at each chunk than its average token does, summing to 1 over the chunks.

    The question is read by itself; then it looks at every chunk of the sparse level, timestamps included, as though
    that chunk lay right before it. So a chunk's score does not depend on how far from the end of the video it is:
    rotary positions beyond those a model has seen would weaken and distort what its heads find. See `chunk_attention`.
    """
    base = views.prefix_view(request.memory, request.kernel, len(request.ids))
    k_start, k_end, width = chunk_slots(request.memory, request.chunk_size)
    scores = chunk_attention(
        request.params,
        request.config,
        base,
        k_start,
        k_end,
        request.ids,
        np.asarray(request.count, np.int32),
        width=width,
        kernel=request.kernel,
    )
    # With one chunk no token looks more at it than another does.
    scores = np.maximum(np.asarray(scores)[:, : request.chunks], 1e-9)
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


def chunk_slots(memory: VideoMemory, chunk_size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Where chunks lie in the sparse level: starts and stops int32 [C], C rounded up by empty chunks, and the most
    slots of one, rounded up."""
    layout = memory.layout
    first = np.arange(0, layout.groups, chunk_size)
    k_start = layout.timestamp_starts[first] + first * (layout.visual // memory.compression)
    k_end = np.append(k_start[1:], memory.sparse_length)

    def pad(bounds):
        return np.pad(bounds, (0, bucket(len(first)) - len(first))).astype(np.int32)

    return pad(k_start), pad(k_end), min(bucket(int((k_end - k_start).max())), memory.sparse.k.shape[2])


def chunks_at_once(kernel: Kernel) -> int | None:
    """How many chunks are looked at in a step; None: one, without a copy of its keys.

    A CPU wants logits that stay in its cache, a GPU few and large steps; a TPU would copy all keys to cut several.
    """
    return {"reference": 8, "tpu": None}.get(kernel.name, 32)


@partial(jax.jit, static_argnames=("config", "width", "kernel"))
def chunk_attention(
    params: Any,
    config: ModelConfig,
    base: KVCacheView,
    k_start: jax.Array,
    k_end: jax.Array,
    ids: jax.Array,
    count: jax.Array,
    *,
    width: int,
    kernel: Kernel = REFERENCE,
) -> jax.Array:
    """Score per chunk of a one-stream memory, of which questions read only the prefix, `base`.

    Of every layer, head and token of a question: how its attention is shared out among the chunks, each of them moved
    to right before the question. Of every head: the greatest share that any token gives a chunk, above the mean over
    tokens (what a chunk gets from all of them says nothing of the question). Averaged over heads and layers.

    Shapes: starts, stops int32 [C], slots of each chunk, at most `width` (an empty chunk gets 0); ids int32 [B, N];
    count [B] → fp32 [B, C].
    """
    lm, rows = config.language, ids.shape[1]
    (stream,) = base.streams
    ids, begin = left_pad(ids, count)
    room, share_of_layer = stream.k.shape[2], 1 / (lm.heads * lm.layers)

    def score(q: jax.Array, begin: jax.Array, layer: jax.Array) -> jax.Array:
        q = rearrange(q * lm.head_width**-0.5, "n (k r) d -> k (n r) d", k=lm.kv_heads)

        def look(bounds: tuple[jax.Array, jax.Array]) -> jax.Array:
            start, stop = bounds
            first = jnp.minimum(start, room - width)
            k = jax.lax.dynamic_slice(stream.k, (layer, 0, first, 0), (1, lm.kv_heads, width, lm.head_width))[0]
            k = rotate(k, *rotation((base.position - stop)[None], lm.head_width, lm.rope_theta))
            slots = first + jnp.arange(width)
            logits = jnp.einsum("knd,ksd->kns", q, k, preferred_element_type=jnp.float32)
            return jax.nn.logsumexp(jnp.where((slots >= start) & (slots < stop), logits, -jnp.inf), axis=-1)

        share = jax.nn.softmax(jax.lax.map(look, (k_start, k_end), batch_size=chunks_at_once(kernel)), axis=0)
        share = rearrange(share, "c k (n r) -> c n (k r)", n=rows)
        real = (jnp.arange(rows) >= begin)[:, None]
        mean = jnp.where(real, share, 0).sum(axis=1) / jnp.maximum(rows - begin, 1)
        return jnp.sum(jnp.where(real, share, 0).max(axis=1) - mean, axis=-1) * share_of_layer

    def observe(scores, q, lse, layer):
        # Question by question: logits of all at once would be large.
        return scores + jax.lax.map(lambda args: score(*args, layer), (q, begin))

    nothing = jnp.zeros((len(ids), len(k_start)), jnp.float32)
    tail = empty_tail(config, base, len(ids), rows)
    return extend(params, config, base, tail, begin, jnp.int32(0), ids, observe=observe, seen=nothing, kernel=kernel)[2]
