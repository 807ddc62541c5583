"""Tile sizes: what kernels are compiled with on each kind of device. The figures are in devices.json."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class TileSizes:
    """rows: packed query rows of a tile; keys: keys per step; stages: key tiles in flight; warps: of a
    program, where the backend lets one choose."""

    rows: int
    keys: int
    stages: int = 2
    warps: int = 4


@dataclass(frozen=True)
class DeviceTiles:
    """A row of devices.json: `cores` run items at the same time; `by_rows` from few rows to many; `full` is for
    full attention over short sequences, its heads padded to `full_width`."""

    kernel: str
    cores: int
    by_rows: tuple[TileSizes, ...]
    full: TileSizes
    full_width: int


@cache
def _table() -> list[dict]:
    return json.loads(Path(__file__).with_name("devices.json").read_text())


def lookup(kernel: str, device_kind: str) -> DeviceTiles:
    """The row of a kernel for a device kind: the first whose pattern is found in it, else the kernel's last,
    which is the safe one."""
    rows = [row for row in _table() if row["kernel"] == kernel]
    row = next((row for row in rows if re.search(row["device"], device_kind, re.IGNORECASE)), rows[-1])
    by_rows = tuple(TileSizes(**tiles) for tiles in row["by_rows"])
    return DeviceTiles(kernel, row["cores"], by_rows, TileSizes(**row["full"]), row["full_width"])
