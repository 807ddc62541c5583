"""Which device of a mesh holds which groups of a video, and where: the only place that decides it.

A video that is sharded over its length is cut into pieces of one stride. The pieces are dealt out in turn: piece i belongs to
device i mod Z of the `sequence` axis. A device stores its pieces one after another, so the order of the whole video is
kept, and what is contiguous in the video is contiguous on every device. Everything here is NumPy on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from vxl2_jax.layout import Layout

Bounds = Int[np.ndarray, "*bounds"]
Local = Callable[[Bounds, int], Bounds]
"""(indices in a stream, a device) → how many of the keys before each of them the device reads."""


@dataclass(frozen=True)
class Placement:
    """The placement of a video on Z devices.

    Attributes:
      layout: the tokens of the video.
      devices: Z.
      stride: groups of a piece.
      lead: groups of the first piece, if it is shorter; 0 if it is not. A memory that was watched with other strides is
        extended from a group that is no multiple of this one.
    """

    layout: Layout
    devices: int
    stride: int
    lead: int = 0

    @cached_property
    def owner(self) -> Int[np.ndarray, " G"]:
        """The device of each group."""
        return (self.piece(np.arange(self.layout.groups)) % self.devices).astype(np.int32)

    def piece(self, group: Int[np.ndarray, "*n"] | int) -> Int[np.ndarray, "*n"]:
        """The number of the piece in which a group is."""
        later = (np.asarray(group) - self.lead) // self.stride + (self.lead > 0)
        return np.where(np.asarray(group) < self.lead, 0, later)

    def pieces(self, first: int, last: int) -> list[tuple[int, int]]:
        """The range of groups `first` … `last` − 1, cut where the pieces meet."""
        cuts = [g for g in range(self.lead or self.stride, last, self.stride) if g > first]
        bounds = [first, *cuts, last]
        return list(zip(bounds, bounds[1:], strict=False))

    def groups(self, device: int) -> Int[np.ndarray, " n"]:
        """The groups of a device, ascending."""
        return np.flatnonzero(self.owner == device)

    def visual(self, bounds: Bounds, device: int) -> Bounds:
        """Indices in the visual stream → indices in the device's part of it; a `Local`."""
        return self._local(np.arange(self.layout.groups + 1) * self.layout.visual, bounds, device)

    def sparse(self, compression: int) -> Local:
        """The same for the sparse level, in which a timestamp precedes the pooled tokens of its group."""
        layout = self.layout
        ends = layout.timestamp_ends + np.arange(1, layout.groups + 1) * layout.pooled(compression)
        starts = np.concatenate([[0], ends])
        return lambda bounds, device: self._local(starts, bounds, device)

    def share(self, length: int) -> Local:
        """The same for a stream of `length` tokens that every device holds: each reads a share of it."""

        def local(bounds: Bounds, device: int) -> Bounds:
            first, last = (length * number // self.devices for number in (device, device + 1))
            return np.clip(bounds, first, last)

        return local

    def sparse_rows(self, compression: int, device: int) -> Int[np.ndarray, " n"]:
        """The slots of the whole sparse level that a device holds, in its order."""
        local = self.sparse(compression)
        slots = np.arange(self.layout.sparse_length(compression) + 1)
        return np.flatnonzero(np.diff(local(slots, device)))

    def most_sparse(self, compression: int) -> int:
        """The most slots of the sparse level that a device holds."""
        length, local = np.asarray([self.layout.sparse_length(compression)]), self.sparse(compression)
        return max(int(local(length, device)[0]) for device in range(self.devices))

    def _local(self, starts: Int[np.ndarray, " G1"], bounds: Bounds, device: int) -> Bounds:
        """starts: where each group begins in a stream, and where the last one ends."""
        own = np.where(self.owner == device, np.diff(starts), 0)
        before = np.concatenate([[0], np.cumsum(own)])
        group = np.clip(np.searchsorted(starts, bounds, "right") - 1, 0, self.layout.groups)
        inside = np.append(self.owner == device, False)[group]
        return (before[group] + np.where(inside, bounds - starts[group], 0)).astype(np.int32)


def resumed(layout: Layout, devices: int, stride: int, first: int) -> Placement:
    """The placement of a video whose extension begins at group `first`."""
    return Placement(layout, devices, stride, first % stride)


class Readers(NamedTuple):
    """How the devices share the reading of some streams.

    devices: their number; maps: of each stream.
    """

    devices: int
    maps: tuple[Local, ...]

    def local(self, bounds: Int[np.ndarray, "S R"], device: int) -> Int[np.ndarray, "S R"]:
        """Bounds of key ranges in the streams as bounds on a device."""
        return np.stack([local(row, device) for local, row in zip(self.maps, bounds, strict=True)]).astype(np.int32)
