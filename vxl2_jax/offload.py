"""Watching with the dense level in host memory: the device holds the keys and values of two layers.

While it computes one layer of a stride, those of the next layer are copied to it, and those that the layer before has
added are copied back. Nothing is approximated: every layer reads the cache that `prefill.run_stride` would read.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float

from pallas_kernels import kv_cache
from pallas_kernels.attention import REFERENCE, Kernel, KVCache
from pallas_kernels.kv_cache import Index
from vxl2_jax import prefill
from vxl2_jax.cache import pooling
from vxl2_jax.config import ModelConfig
from vxl2_jax.prefill import DenseCache, Stride
from vxl2_jax.storage.host_level import HostLevel
from vxl2_jax.tensor_parallel import cache_sharding

BUFFERS = 2
"""Layers whose caches are on the device at the same time: the one that is computed and the next one."""
_PIECE = 2**14
"""Slots that are copied at a time: in the released model 17 MB in int8. Copies end with the piece that holds the last token."""


def run_stride(
    params: Any,
    config: ModelConfig,
    level: HostLevel,
    stride: Stride,
    visual_tokens: Float[Array | np.ndarray, "stride V E"],
    kernel: Kernel = REFERENCE,
) -> None:
    """Feed one stride through the language model, as `prefill.run_stride`, and write its keys and values into the level."""
    layers, count, sharding = params["language"]["layers"], config.language.layers, cache_sharding(params)
    stacked = not isinstance(layers, tuple)
    written = int(stride.visual_offset), int(stride.global_offset)
    x = prefill.stride_inputs(params, config, stride, visual_tokens)
    buffers = [_buffer(level, sharding) for _ in range(BUFFERS)]
    upcoming = _upload(level, 0, buffers.pop(), written, sharding)
    added: DenseCache | None = None
    for layer in range(count):
        own = {"language": {"layers": layers if stacked else layers[layer]}}
        x, used, rows = prefill.run_stride_layer(
            own,
            config,
            np.int32(layer),
            x,
            upcoming,
            stride,
            stacked=stacked,
            keys_only=layer == count - 1,
            kernel=kernel,
        )
        if layer + 1 < count:
            upcoming = _upload(level, layer + 1, buffers.pop(), written, sharding)
        # Waiting for the layer before keeps the device busy with this one, and no more than two layers in its memory.
        if added is not None:
            level.write_layer(layer - 1, added, stride)
        buffers.append(used)
        added = rows
    if added is not None:
        level.write_layer(count - 1, added, stride)


def sparse_level(level: HostLevel, compression: int, rope_theta: float, sharding: Sharding | None) -> KVCache:
    """The sparse level on the device, as `pooling.sparse_level`, made one layer at a time. sharding: of caches."""
    layout, shape = level.layout, level.shape
    slots = pooling.sparse_capacity(layout, compression, shape.dtype)
    sparse = kv_cache.zeros(shape.layers, shape.kv_heads, slots, shape.head_width, shape.dtype, sharding)
    buffer, lengths = _buffer(level, sharding), (layout.visual_length, layout.global_length)
    for layer in range(shape.layers):
        buffer = _upload(level, layer, buffer, lengths, sharding)
        pooled = pooling.sparse_level(buffer, layout, compression, rope_theta)
        sparse = jax.block_until_ready(_put_layer(sparse, pooled, np.int32(layer)))
    return sparse


def _buffer(level: HostLevel, sharding: Sharding | None) -> DenseCache:
    """Room on the device for the caches of one layer."""
    _, kv_heads, width, dtype = level.shape
    return DenseCache(*(kv_cache.zeros(1, kv_heads, s.slots, width, dtype, sharding) for s in level.streams))


def _upload(
    level: HostLevel, layer: int, buffer: DenseCache, lengths: tuple[int, int], sharding: Sharding | None
) -> DenseCache:
    """The buffer, which is donated, with the first `lengths` slots of a layer. The copies go on after this returns."""
    streams = list(buffer)
    for number, start, rows in level.read_layer(layer, lengths, _PIECE):
        streams[number] = _put_rows(streams[number], jax.device_put(rows, sharding), np.int32(start))
    return DenseCache(*streams)


@partial(jax.jit, donate_argnames="stream")
def _put_rows(stream: KVCache, rows: KVCache, start: Index) -> KVCache:
    return stream.with_rows(rows, start)


@partial(jax.jit, donate_argnames="sparse")
def _put_layer(sparse: KVCache, layer: KVCache, number: Index) -> KVCache:
    return jax.tree.map(lambda a, part: jax.lax.dynamic_update_slice_in_dim(a, part, number, axis=0), sparse, layer)
