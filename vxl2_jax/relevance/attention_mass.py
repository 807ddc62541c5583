"""Relevance by attention mass: the attention of a question's pass over the whole sparse level, summed per chunk.

This is the plain way. Unfocused heads hide the focused ones, and the farther a chunk is from the end the less it gets.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from pallas_kernels import attention
from pallas_kernels.attention import REFERENCE, Kernel
from vxl2_jax.cache import views
from vxl2_jax.cache.views import KVCacheView
from vxl2_jax.config import ModelConfig
from vxl2_jax.decode import empty_tail, extend, left_pad
from vxl2_jax.hosts import on_every_host
from vxl2_jax.relevance.inputs import ScorerInputs
from vxl2_jax.tensor_parallel import SEQUENCE, PerDevice, mean_over_devices, program


def attention_mass_scores(inputs: ScorerInputs) -> Float[np.ndarray, "B C"]:
    """Share of a question's attention that each chunk receives, summing to 1 over the chunks.

    All questions are run over the sparse level once; the attention of all layers, heads and tokens of a question to a
    chunk's tokens, timestamps included, is summed.
    """
    memory = inputs.memory
    view, count = views.sparse_view(memory, inputs.kernel, len(inputs.ids)), np.asarray(inputs.count, np.int32)
    placement, length = memory.placement, None
    start, end = memory.layout.chunk_slots(memory.compression, inputs.chunk_size)
    parts = [(start, end)]
    if placement:
        local = placement.sparse(memory.compression)
        devices = range(placement.devices)
        parts = [(local(start, device), local(end, device)) for device in devices]
        length = PerDevice(np.stack([local(np.asarray(memory.sparse_length), device) for device in devices]))
    mass = mass_per_key(inputs.params, inputs.config, view, inputs.ids, count, inputs.kernel, length)
    held = np.split(np.asarray(on_every_host(mass)), len(parts), axis=1)  # by device
    scores = np.stack(
        [
            sum(
                own[:, bounds[0][chunk] : bounds[1][chunk]].sum(axis=1) for own, bounds in zip(held, parts, strict=True)
            )
            for chunk in range(len(start))
        ],
        axis=1,
    )
    return (scores / np.maximum(scores.sum(axis=1, keepdims=True), 1e-30)).astype(np.float32)


@program(static=("config", "kernel"), results=P(None, SEQUENCE))
def mass_per_key(
    params: Any,
    config: ModelConfig,
    view: KVCacheView,
    ids: Int[Array | np.ndarray, "B N"],
    count: Int[Array | np.ndarray, " B"],
    kernel: Kernel = REFERENCE,
    length: PerDevice | None = None,
) -> Float[Array, "B S"]:
    """The attention that each key of a shared one-stream view receives from each question, averaged over layers, heads
    and the question's `count` real tokens, in fp32. length: of a sharded video, the keys of the stream on each device."""
    (questions, rows), lm = ids.shape, config.language
    (stream,) = view.streams
    ids, begin = left_pad(ids, count)
    real = jnp.arange(rows) >= begin[:, None]
    share = real / (jnp.maximum(count, 1)[:, None] * lm.heads * lm.layers)
    weights = jnp.broadcast_to(share.astype(jnp.float32)[..., None], (questions, rows, lm.heads))
    k_end = jnp.where(real, view.position if length is None else length.own(), 0)

    def observe(mass: jax.Array, q: jax.Array, lse: jax.Array, layer: jax.Array) -> jax.Array:
        def one_question(args: tuple) -> jax.Array:
            q, *others = args
            return attention.key_mass(q, stream, *others, layer=layer, key_tile=kernel.keys_per_step)

        # One question at a time: the logits of all of them would be large.
        return mass + jax.lax.map(one_question, (q, k_end, lse, weights))

    zeros = jnp.zeros((questions, stream.k.shape[2]), jnp.float32)
    tail = empty_tail(config, view, questions, rows)
    first = jnp.int32(0)
    mass = extend(params, config, view, tail, begin, first, ids, observe=observe, state=zeros, kernel=kernel)[2]
    return mean_over_devices(mass, lm)
