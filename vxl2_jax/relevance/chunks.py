"""Where the chunks of a memory are in its sparse level, on one device or on several."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vxl2_jax.buckets import bucket
from vxl2_jax.memory import VideoMemory
from vxl2_jax.tensor_parallel import SEQUENCE, PerDevice


class ChunkSlots(NamedTuple):
    """The slots of chunks: int32 [C], padded with empty ones.

    start, end: the slots of each chunk, or of the part of it that a device holds; last: the position behind the whole chunk.
    """

    start: np.ndarray
    end: np.ndarray
    last: np.ndarray


class HeldChunks(NamedTuple):
    """The chunks of which a device holds all or a part.

    Attributes:
      slots: of each of them, padded with empty ones.
      number: int32, the number of each chunk in the video; padding has the number of all chunks.
      shared: int32, a number for each chunk of which other devices have parts as well; all others have the number of these.
      is_first: whether the device holds the first part, and so reports the chunk's score.
    """

    slots: ChunkSlots
    number: np.ndarray
    shared: np.ndarray
    is_first: np.ndarray


class ChunkTable(NamedTuple):
    """The chunks of a memory, in sizes that are rounded up, so that other videos need no other programs.

    Attributes:
      slots: of all chunks; of a sharded video, the `HeldChunks` of each device.
      width: the most slots of a chunk.
      chunks: the number of chunks C.
      shared: the number of chunks of which several devices hold a part.
    """

    slots: ChunkSlots | PerDevice
    width: int
    chunks: int
    shared: int = 0


def chunk_table(memory: VideoMemory, chunk_size: int) -> ChunkTable:
    """The chunks of `chunk_size` groups."""
    start, end = memory.layout.chunk_slots(memory.compression, chunk_size)
    chunks, placement = bucket(len(start)), memory.placement
    if placement is None:
        width = min(bucket(int((end - start).max())), memory.sparse.slots)
        return ChunkTable(ChunkSlots(*(_padded(a, chunks) for a in (start, end, end))), width, chunks)
    local = placement.sparse(memory.compression)
    parts = np.stack([[local(bound, device) for bound in (start, end)] for device in range(placement.devices)])
    holds = parts[:, 0] < parts[:, 1]
    split = np.flatnonzero(holds.sum(axis=0) > 1)
    shared, length = bucket(len(split)) if len(split) else 0, bucket(int(holds.sum(axis=1).max()))
    numbers = np.full(len(start), shared)
    numbers[split] = np.arange(len(split))
    each = []
    for device, (own_start, own_end) in enumerate(parts):
        held = np.flatnonzero(holds[device])
        is_first = ~holds[:device, held].any(axis=0)
        slots = ChunkSlots(*(_padded(a[held], length) for a in (own_start, own_end, end)))
        number, others = _padded(held, length, chunks), _padded(numbers[held], length, shared)
        each.append(HeldChunks(slots, number, others, _padded(is_first, length).astype(bool)))
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *each)
    width = min(bucket(int((parts[:, 1] - parts[:, 0]).max())), memory.sparse.slots // placement.devices)
    return ChunkTable(PerDevice(stacked), width, chunks, shared)


def _padded(values: np.ndarray, length: int, value: int = 0) -> np.ndarray:
    return np.pad(values, (0, length - len(values)), constant_values=value).astype(np.int32)


def shares_on_devices(found: Float[Array, "held K rows"], held: HeldChunks, shared: int) -> Float[Array, "held K rows"]:
    """The softmax over all chunks, for those that a device holds, from the log-sum-exp of its parts of them.

    Only the shares of chunks that are split are exchanged: those of all chunks of a long video are large.
    """
    largest = jax.lax.pmax(found.max(axis=0), SEQUENCE)
    weights = jnp.exp(found - largest)
    share = weights / jax.lax.psum(weights.sum(axis=0), SEQUENCE)
    if not shared:
        return share
    number = jnp.asarray(held.shared)
    parts = jnp.zeros((shared, *share.shape[1:])).at[number].add(share, mode="drop")
    whole = jax.lax.psum(parts, SEQUENCE)[jnp.minimum(number, shared - 1)]
    return jnp.where((number < shared)[:, None, None], whole, share)


def scores_of_all(scores: Float[Array, "B held"], held: HeldChunks, chunks: int) -> Float[Array, "B {chunks}"]:
    """The scores of all chunks from those that each device has for the chunks that it holds."""
    own = jnp.where(held.is_first, scores, 0)
    every = jnp.zeros((len(scores), chunks)).at[:, held.number].add(own, mode="drop")
    return jax.lax.psum(every, SEQUENCE)
