"""The mixed cache of bi-level decoding: each chunk dense or sparse, positions re-counted from 0.

Keys are stored rotated, and rotations compose, so moving a token from position p to p' is a rotation by p' − p.
The cache is assembled, by gathering from the memory's two levels slot by slot, or only said, as runs of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import KVCache
from pallas_kernels.decode import Segments
from vxl2_jax.buckets import bucket
from vxl2_jax.layout import Layout
from vxl2_jax.memory import VideoMemory
from vxl2_jax.models.rope import rotate, rotation

_FROM_VISUAL, _FROM_GLOBAL, _FROM_SPARSE = range(3)


class MixedPlan(NamedTuple):
    """For every slot of the mixed cache: the store it comes from, the index there, and new − old position.

    Slots are positions. int32 [M] each, M the mixed length.
    """

    store: np.ndarray
    index: np.ndarray
    shift: np.ndarray


def mixed_length(layout: Layout, compression: int, chunk_size: int, interior: int) -> int:
    """Tokens of a mixture with first, last and so many other chunks dense."""
    chunks = layout.chunks(chunk_size)
    if interior >= chunks - 2:
        return layout.length
    last = layout.groups - (chunks - 1) * chunk_size
    dense = (interior + 1) * chunk_size + last
    return layout.global_length + dense * layout.visual + (layout.groups - dense) * (layout.visual // compression)


def plan_mixed(layout: Layout, compression: int, chunk_size: int, dense: np.ndarray) -> MixedPlan:
    """Lay out the mixed cache. `dense` bool [chunks + 1]: which chunks are loaded dense (0 is the prefix)."""
    kept = layout.visual // compression
    dense_group = np.asarray(dense)[layout.chunk_of_group(chunk_size)]
    stamps = np.asarray(layout.stamps, np.int64)
    timestamp_starts = layout.timestamp_starts.astype(np.int64)
    sparse_starts = timestamp_starts + np.arange(layout.groups) * kept
    # One row per run of consecutive slots: (store, first index, length, old position of the first).
    runs = [(_FROM_GLOBAL, 0, layout.prefix, 0)]
    for g in range(layout.groups):
        if dense_group[g]:
            start = int(timestamp_starts[g])
            runs.append((_FROM_GLOBAL, start, int(stamps[g]), start + g * layout.visual))
            runs.append(
                (_FROM_VISUAL, g * layout.visual, layout.visual, int(layout.timestamp_ends[g]) + g * layout.visual)
            )
        else:
            start = int(sparse_starts[g])
            runs.append((_FROM_SPARSE, start, int(stamps[g]) + kept, start))
    store, first, length, old = np.asarray(runs, np.int64).T
    new = np.cumsum(length) - length
    within = np.arange(length.sum()) - np.repeat(new, length)

    def spread(per_run):
        return np.repeat(per_run, length)

    return MixedPlan(
        store=spread(store).astype(np.int32),
        index=(spread(first) + within).astype(np.int32),
        shift=spread(new - old).astype(np.int32),
    )


def plan_runs(layout: Layout, compression: int, chunk_size: int, dense: np.ndarray) -> Segments:
    """The same cache as runs of the streams (visual, global, sparse): one for the prefix and the dense chunks behind
    it, then one for every stretch of equally loaded chunks."""
    kept = layout.visual // compression
    dense_group = np.asarray(dense)[layout.chunk_of_group(chunk_size)]
    first = np.flatnonzero(np.diff(dense_group, prepend=not dense_group[:1].all()))
    last = np.append(first[1:], layout.groups)
    stamps = np.append(layout.prefix, layout.timestamp_ends)
    # What lies between `first` and `last` in each of the three streams, as if it were read there.
    bounds = np.stack([np.stack([g * layout.visual, stamps[g], stamps[g] + g * kept]) for g in (first, last)])
    loaded = dense_group[first]
    start, stop = np.where(np.stack([loaded, loaded, ~loaded]), bounds, 0)
    prefix = np.asarray([[0], [layout.prefix], [0]])
    start, stop = np.concatenate([0 * prefix, start], axis=1), np.concatenate([prefix, stop], axis=1)
    length = (stop - start).sum(axis=0)
    old = start.sum(axis=0)  # a dense run begins at its visual index and its global index together
    shift = np.cumsum(length) - length - old
    if loaded[:1].all():
        start, stop, shift = np.delete(start, 1, axis=1), np.delete(stop, 0, axis=1), shift[1:]
    return Segments(*(a.astype(np.int32) for a in (start, stop, shift)))


def compacted(plan: MixedPlan | Segments, layout: Layout, groups: np.ndarray) -> MixedPlan | Segments:
    """The same cache, of dense streams that hold only the prefix and `groups` (ascending), behind each other."""
    visual, global_ = np.zeros(layout.visual_length, np.int32), np.zeros(layout.global_length, np.int32)
    for places, held in ((visual, layout.visual_rows(groups)), (global_, layout.global_rows(groups))):
        places[held] = np.arange(len(held))
    if isinstance(plan, MixedPlan):
        index = plan.index
        for store, places in ((_FROM_VISUAL, visual), (_FROM_GLOBAL, global_)):
            here = plan.store == store
            index = np.where(here, places[np.where(here, plan.index, 0)], index)
        return plan._replace(index=index)
    start = plan.start.copy()
    for stream, places in ((_FROM_VISUAL, visual), (_FROM_GLOBAL, global_)):
        read = start[stream] < plan.stop[stream]
        start[stream] = np.where(read, places[np.where(read, start[stream], 0)], 0)
    return plan._replace(start=start, stop=start + plan.stop - plan.start)


def assemble(memory: VideoMemory, plan: MixedPlan) -> KVCache:
    """Gather the mixed cache [L, K, S, D]; S is the mixed length rounded up to a bucket."""
    return gather((*memory.dense, memory.sparse), [plan], memory.rope_theta)


def gather(stores: tuple[KVCache, ...], plans: Sequence[MixedPlan], rope_theta: float, least: int = 0) -> KVCache:
    """The caches that B plans say of stores (visual, global, sparse), [L · B, K, S, D]: that of plan b in layer l is at
    l · B + b. S is the longest, or `least`, rounded up to a bucket."""
    room = bucket(max(len(plan.store) for plan in plans), minimum=max(least, 128))
    stacked = MixedPlan(*(np.stack([np.pad(a, (0, room - len(a))) for a in part]) for part in zip(*plans, strict=True)))
    return _gather(stores, stacked, rope_theta=rope_theta)


@partial(jax.jit, static_argnames=("rope_theta",))
def _gather(stores: tuple[KVCache, ...], plan: MixedPlan, *, rope_theta: float) -> KVCache:
    """Plans [B, S]."""
    turn = [table[:, None] for table in rotation(plan.shift, stores[0].k.shape[-1], rope_theta)]

    def pick(parts: tuple[jax.Array, ...]) -> jax.Array:
        rows = 0
        for number, part in enumerate(parts):
            here = plan.store == number
            picked = jnp.swapaxes(part[:, jnp.where(here, plan.index, 0)], 0, 1)
            rows = rows + jnp.where(here[:, None, :, None], picked, 0)
        return rows

    def one_layer(layer: tuple[KVCache, ...]) -> KVCache:
        return KVCache(rotate(pick(tuple(s.k for s in layer)), *turn), pick(tuple(s.v for s in layer)))

    caches = jax.lax.map(one_layer, stores)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), caches)
