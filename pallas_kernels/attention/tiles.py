"""Tile sizes: what a kernel is compiled with on a device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tiles:
    """rows: packed query rows of a tile; keys: keys per step; stages: key tiles in flight; warps: of a
    program, where the backend lets one choose."""

    rows: int
    keys: int
    stages: int = 2
    warps: int = 4
