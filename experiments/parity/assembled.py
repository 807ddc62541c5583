"""The mixed cache of bi-level decoding assembled slot by slot: the oracle of tests and parity.

It restates the rule of `vxl2_jax.cache.plan` in another way, group by group and slot by slot, and gathers what the product
reads in place.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import REFERENCE, Kernel, KVCache
from vxl2_jax.buckets import bucket
from vxl2_jax.cache.views import KVCacheView, whole_view
from vxl2_jax.layout import Layout
from vxl2_jax.memory import VideoMemory
from vxl2_jax.models.rope import rotate, rotation

_FROM_VISUAL, _FROM_GLOBAL, _FROM_SPARSE = range(3)


class MixedPlan(NamedTuple):
    """For every slot of the mixed cache: the stream it comes from, the index there, and new − old position.

    Slots are positions. int32 [M] each, M the mixed length.
    """

    store: np.ndarray
    index: np.ndarray
    shift: np.ndarray


def plan_mixed(layout: Layout, compression: int, chunk_size: int, dense: np.ndarray) -> MixedPlan:
    """Lay out the mixed cache. dense: bool [C + 1], which chunks are loaded dense (0 is the prefix)."""
    kept = layout.visual // compression
    dense_group = np.asarray(dense)[np.arange(layout.groups) // chunk_size + 1]
    lengths = np.asarray(layout.timestamp_lengths, np.int64)
    starts = layout.timestamp_starts.astype(np.int64)
    # One row per range of consecutive slots: (stream, first index, length, old position of the first).
    ranges = [(_FROM_GLOBAL, 0, layout.prefix, 0)]
    for g in range(layout.groups):
        start, length = int(starts[g]), int(lengths[g])
        if dense_group[g]:
            ranges.append((_FROM_GLOBAL, start, length, start + g * layout.visual))
            ranges.append((_FROM_VISUAL, g * layout.visual, layout.visual, start + length + g * layout.visual))
        else:
            ranges.append((_FROM_SPARSE, start + g * kept, length + kept, start + g * kept))
    store, first, length, old = np.asarray(ranges, np.int64).T
    new = np.cumsum(length) - length
    within = np.arange(length.sum()) - np.repeat(new, length)
    return MixedPlan(
        store=np.repeat(store, length).astype(np.int32),
        index=(np.repeat(first, length) + within).astype(np.int32),
        shift=np.repeat(new - old, length).astype(np.int32),
    )


def assemble(memory: VideoMemory, plan: MixedPlan) -> KVCache:
    """Gather the mixed cache [L, K, S, D]; S is the mixed length rounded up."""
    capacity = bucket(len(plan.store), minimum=128)
    padded = MixedPlan(*(np.pad(a, (0, capacity - len(a))) for a in plan))
    return _gather((*memory.dense, memory.sparse), padded, rope_theta=memory.rope_theta)


def assembled_view(memory: VideoMemory, plan: MixedPlan, kernel: Kernel = REFERENCE) -> KVCacheView:
    """A view of the assembled cache, for one question."""
    return whole_view((assemble(memory, plan),), [len(plan.store)], kernel)


@partial(jax.jit, static_argnames=("rope_theta",))
def _gather(streams: tuple[KVCache, ...], plan: MixedPlan, *, rope_theta: float) -> KVCache:
    move = rotation(plan.shift, streams[0].k.shape[-1], rope_theta)

    def pick(parts: tuple[jax.Array, ...]) -> jax.Array:
        rows = 0
        for number, part in enumerate(parts):
            here = plan.store == number
            rows = rows + jnp.where(here[None, :, None], part[:, jnp.where(here, plan.index, 0)], 0)
        return rows

    def one_layer(layer: tuple[KVCache, ...]) -> KVCache:
        return KVCache(rotate(pick(tuple(s.k for s in layer)), *move), pick(tuple(s.v for s in layer)))

    return jax.lax.map(one_layer, streams)
