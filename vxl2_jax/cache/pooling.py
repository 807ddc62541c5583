"""The sparse level of a memory: the dense level with the visual tokens of every group mean-pooled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jax.typing import DTypeLike

from pallas_kernels import kv_cache
from pallas_kernels.attention import KVCache
from vxl2_jax.buckets import bucket
from vxl2_jax.errors import RequestError, shown
from vxl2_jax.layout import Layout, pooled
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.placement import Placement
from vxl2_jax.prefill import DenseCache
from vxl2_jax.storage.placed_level import PlacedLevel
from vxl2_jax.tensor_parallel import SHARDED_CACHE, PerDevice, program


def check_compression(compression: int, visual: int) -> None:
    """Raise RequestError unless a window of `compression` visual tokens fits into a group of `visual`."""
    if not isinstance(compression, (int, np.integer)) or not 1 <= compression <= visual:
        raise RequestError(
            f"compression must be from 1 to {visual} (the visual tokens of a group), not {shown(compression)}"
        )


def sparse_capacity(layout: Layout, compression: int, dtype: DTypeLike = jnp.float32) -> int:
    """Slots of a sparse level: its length, rounded up so that videos of similar length share executables."""
    return kv_cache.aligned(bucket(layout.sparse_length(compression), minimum=128), dtype)


def sparse_level(dense: DenseCache, layout: Layout, compression: int, rope_theta: float) -> KVCache:
    """Pool the dense level into a sparse one [L, K, S, D] of `sparse_capacity` slots, in natural order, in the same dtype.

    Keys are rotated at the positions that they would have if every chunk were sparse, so a slot's index is its position
    and the level is an ordinary cache of the whole video. Raises RequestError for a compression out of range.
    """
    check_compression(compression, layout.visual)
    visual_capacity, global_capacity = dense.visual.slots, dense.global_.slots
    new_visual, new_global = layout.visual_positions(compression), layout.global_positions(compression)
    # The source of every slot of the sparse level: a global token, or (behind them) a pooled one.
    source = np.zeros(sparse_capacity(layout, compression, dense.visual.dtype), np.int32)
    source[new_global] = np.arange(len(new_global))
    source[new_visual] = global_capacity + np.arange(len(new_visual))

    return _pool(
        dense,
        _pad(layout.visual_positions(), visual_capacity),
        _pad(new_visual, visual_capacity // layout.visual * layout.pooled(compression)),
        _pad(new_global - layout.global_positions(), global_capacity),
        source,
        visual=layout.visual,
        compression=compression,
        rope_theta=rope_theta,
    )


def sparse_level_of_shards(level: PlacedLevel, compression: int, rope_theta: float) -> KVCache:
    """The sparse level of a sharded video: each device pools its own groups, whose slots stay in their order.

    Raises RequestError for a compression out of range.
    """
    placement, layout = level.placement, level.placement.layout
    check_compression(compression, layout.visual)
    capacity = level.streams.visual.slots // placement.devices
    slots, kept = sharded_capacity(placement, compression, level.shape.dtype), layout.pooled(compression)
    old, new, source = [], [], []
    for device in range(placement.devices):
        groups = placement.groups(device)
        pooled_rows = (groups[:, None] * kept + np.arange(kept)).reshape(-1)
        new_visual = layout.visual_positions(compression)[pooled_rows]
        old.append(_pad(layout.visual_positions()[layout.visual_rows(groups)], capacity))
        new.append(_pad(new_visual, capacity // layout.visual * kept))
        # The source of every slot of the whole level, of which the device has some.
        where = np.zeros(layout.sparse_length(compression), np.int32)
        where[layout.global_positions(compression)] = np.arange(layout.global_length)
        where[new_visual] = level.streams.global_.slots + np.arange(len(new_visual))
        source.append(_pad(where[placement.sparse_rows(compression, device)], slots))
    shift = layout.global_positions(compression) - layout.global_positions()
    return _pool_shards(
        level.streams,
        PerDevice(tuple(np.stack(each) for each in (old, new, source))),
        _pad(shift, level.streams.global_.slots),
        visual=layout.visual,
        compression=compression,
        rope_theta=rope_theta,
    )


def sharded_capacity(placement: Placement, compression: int, dtype: DTypeLike = jnp.float32) -> int:
    """Slots that each device has of the sparse level of a sharded video, rounded up as in `sparse_capacity`."""
    return kv_cache.aligned(bucket(placement.most_sparse(compression), minimum=128), dtype)


def _pad(rows: np.ndarray, length: int) -> np.ndarray:
    return np.pad(rows, (0, length - len(rows))).astype(np.int32)


@program(static=("visual", "compression", "rope_theta"), results=SHARDED_CACHE)
def _pool_shards(
    dense: DenseCache,
    tables: PerDevice,
    global_shift: jax.Array,
    *,
    visual: int,
    compression: int,
    rope_theta: float,
) -> KVCache:
    """`_pooled` on every device. tables: of each device, the arguments `old_visual`, `new_visual` and `source`."""
    old_visual, new_visual, source = tables.own()
    own = old_visual, new_visual, global_shift, source
    return _pooled(dense, *own, visual=visual, compression=compression, rope_theta=rope_theta)


def _pooled(
    dense: DenseCache,
    old_visual: jax.Array,
    new_visual: jax.Array,
    global_shift: jax.Array,
    source: jax.Array,
    *,
    visual: int,
    compression: int,
    rope_theta: float,
) -> KVCache:
    """The sparse level. Keys are un-rotated before pooling, because a mean of keys at different angles would be no key (the
    original pools keys that were never rotated), and rotated at their new positions after it.

    Args:
      dense: both streams [L, K, S, D].
      old_visual: positions of the visual tokens, int32 [S of the visual stream], padded with zeros.
      new_visual: positions of the pooled tokens, int32 [pooled rows], padded.
      global_shift: by how much the global tokens move, int32 [S of the global stream], padded.
      source: for each slot of the sparse level, the row it is copied from: of the global stream, then the pooled rows.
    """
    width = dense.visual.k.shape[-1]
    undo, redo, move = (rotation(at, width, rope_theta) for at in (-old_visual, new_visual, global_shift))
    kept = pooled(visual, compression)

    def pool(rows: jax.Array) -> jax.Array:
        whole = rows[: len(rows) // visual * visual]
        groups = rearrange(whole, "(g v) d -> g v d", v=visual)[:, : kept * compression]
        return reduce(groups, "g (n c) d -> (g n) d", "mean", c=compression)

    def one_head(head: DenseCache) -> KVCache:
        (k, v), (global_k, global_v) = (stream.dequantised(jnp.float32) for stream in head)
        pooled_rows = KVCache.of_rows(rotate(pool(rotate(k, *undo)), *redo), pool(v), dense.visual.dtype)
        global_rows = KVCache.of_rows(rotate(global_k, *move), global_v, dense.global_.dtype)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts)[source], global_rows, pooled_rows)

    # One head of one layer at a time: XLA for TPUs keeps all its rows in float32.
    layers = len(dense.visual.k)
    heads = jax.tree.map(lambda part: rearrange(part, "l k s d -> (l k) s d"), dense)
    sparse = jax.lax.map(one_head, heads)
    return jax.tree.map(lambda part: rearrange(part, "(l k) s d -> l k s d", l=layers), sparse)


_pool = program(static=("visual", "compression", "rope_theta"))(_pooled)
