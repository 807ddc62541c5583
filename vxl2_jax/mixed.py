"""The mixed cache of bi-level decoding: each chunk dense or sparse, positions re-counted from 0.

Assembled by gathering from the memory's two levels. Keys are stored rotated, and rotations compose, so
moving a token from position p to p' is a rotation by p' − p.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import Stream
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


def plan_mixed(layout: Layout, compression: int, chunk_size: int, dense: np.ndarray) -> MixedPlan:
    """Lay out the mixed cache. `dense` bool [chunks + 1]: which chunks are loaded dense (0 is the prefix)."""
    kept = layout.visual // compression
    dense_group = np.asarray(dense)[layout.chunk_of_group(chunk_size)]
    stamps = np.asarray(layout.stamps, np.int64)
    stamp_starts = layout.stamp_stops - stamps
    sparse_starts = stamp_starts + np.arange(layout.groups) * kept
    # One row per run of consecutive slots: (store, first index, length, old position of the first).
    runs = [(_FROM_GLOBAL, 0, layout.prefix, 0)]
    for g in range(layout.groups):
        if dense_group[g]:
            start = int(stamp_starts[g])
            runs.append((_FROM_GLOBAL, start, int(stamps[g]), start + g * layout.visual))
            runs.append((_FROM_VISUAL, g * layout.visual, layout.visual, int(layout.stamp_stops[g]) + g * layout.visual))
        else:
            start = int(sparse_starts[g])
            runs.append((_FROM_SPARSE, start, int(stamps[g]) + kept, start))
    store, first, length, old = np.asarray(runs, np.int64).T
    new = np.cumsum(length) - length
    within = np.arange(length.sum()) - np.repeat(new, length)
    spread = lambda per_run: np.repeat(per_run, length)
    return MixedPlan(
        store=spread(store).astype(np.int32),
        index=(spread(first) + within).astype(np.int32),
        shift=spread(new - old).astype(np.int32),
    )


def assemble(memory: VideoMemory, plan: MixedPlan) -> Stream:
    """Gather the mixed cache [L, K, S, D]; S is the mixed length rounded up to a bucket."""
    room = bucket(len(plan.store), least=128)
    padded = MixedPlan(*(np.pad(part, (0, room - len(part))) for part in plan))
    return _gather((memory.dense.visual, memory.dense.global_, memory.sparse), padded, rope_theta=memory.rope_theta)


@partial(jax.jit, static_argnames=("rope_theta",))
def _gather(stores: tuple[Stream, ...], plan: MixedPlan, *, rope_theta: float) -> Stream:
    turn = rotation(plan.shift, stores[0].k.shape[-1], rope_theta)

    def pick(parts: tuple[jax.Array, ...]) -> jax.Array:
        rows = 0
        for number, part in enumerate(parts):
            here = plan.store == number
            rows = rows + jnp.where(here[:, None], part[:, jnp.where(here, plan.index, 0)], 0)
        return rows

    def one_layer(layer: tuple[Stream, ...]) -> Stream:
        return Stream(rotate(pick(tuple(s.k for s in layer)), *turn), pick(tuple(s.v for s in layer)))

    return jax.lax.map(one_layer, stores)
