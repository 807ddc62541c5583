"""Which segments of which level a question reads: the only place where a chunk's level becomes key ranges.

A bi-level cache consists of the chunks in time order, each dense or sparse, with positions renumbered from 0. It is
never assembled: it is described as segments of the memory's three streams (visual, global, sparse), each with the
shift from old to new positions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from pallas_kernels.decode import Segments
from vxl2_jax.layout import GLOBAL, VISUAL, Layout

SPARSE = 2
"""Stream number of the sparse level, after those of the dense level."""
LEVELS = ((VISUAL, GLOBAL), (SPARSE,))
"""The streams of the dense and of the sparse level."""


def plan_segments(layout: Layout, compression: int, chunk_size: int, dense: Bool[np.ndarray, " C1"]) -> Segments:
    """The segments of one question's mixed cache: the prefix with the dense chunks that follow it, then one segment for
    every run of chunks that are all dense or all sparse. This is where a chunk becomes dense.

    Args:
      layout: of the video.
      compression: visual tokens that the sparse level pools into one.
      chunk_size: groups per chunk.
      dense: which chunks are read dense; chunk 0 is the prefix, which is always read.

    Returns:
      R segments of the S = 3 streams (visual, global, sparse), without `used`. A shift is new minus cached position.
    """
    dense_group = layout.dense_groups(chunk_size, dense)
    # The first group of every run. What is prepended differs from group 0, so that group 0 begins a run.
    first = np.flatnonzero(np.diff(dense_group, prepend=not dense_group[:1].all()))
    last = np.append(first[1:], layout.groups)
    before = np.append(layout.prefix, layout.timestamp_ends)  # global tokens before each group, and before the end
    # Where the groups from `first` to `last` lie in each of the three streams; each run then reads only its own level.
    bounds = np.stack(
        [np.stack([g * layout.visual, before[g], before[g] + g * layout.pooled(compression)]) for g in (first, last)]
    )
    is_dense = dense_group[first]
    k_start, k_end = np.where(np.stack([is_dense, is_dense, ~is_dense]), bounds, 0)
    prefix = np.asarray([[0], [layout.prefix], [0]])
    k_start, k_end = np.concatenate([0 * prefix, k_start], axis=1), np.concatenate([prefix, k_end], axis=1)
    length = (k_end - k_start).sum(axis=0)
    # The position of a dense segment's first token is the sum of its visual and its global index.
    old = k_start.sum(axis=0)
    shift = np.cumsum(length) - length - old
    if is_dense[:1].all():  # the prefix and the first chunk are one segment
        k_start, k_end, shift = np.delete(k_start, 1, axis=1), np.delete(k_end, 0, axis=1), shift[1:]
    return Segments(*(a.astype(np.int32) for a in (k_start, k_end, shift)))


def relocate(segments: Segments, layout: Layout, groups: Int[np.ndarray, " n"]) -> Segments:
    """The segments, for dense streams that hold only the prefix and `groups` (ascending), one after another: as they are
    when a memory is on disk or in host memory and only the dense chunks are on the device. Shifts stay as they are."""
    k_start = segments.k_start.copy()
    for stream, length, held in (
        (VISUAL, layout.visual_length, layout.visual_rows(groups)),
        (GLOBAL, layout.global_length, layout.global_rows(groups)),
    ):
        places = np.zeros(length, np.int32)
        places[held] = np.arange(len(held))
        read = k_start[stream] < segments.k_end[stream]
        k_start[stream] = np.where(read, places[np.where(read, k_start[stream], 0)], 0)
    return segments._replace(k_start=k_start, k_end=k_start + segments.k_end - segments.k_start)
