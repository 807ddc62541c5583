"""Tile sizes of the kernels on each kind of device, read from devices.json."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TileSizes:
    """Tile sizes that a kernel is compiled with.

    Attributes:
      rows: query rows of a tile (query heads that share a key head are rows of their own).
      keys: keys of a tile, processed per step.
      stages: key tiles in flight.
      warps: warps per program, where the backend allows a choice.
    """

    rows: int
    keys: int
    stages: int = 2
    warps: int = 4


@dataclass(frozen=True)
class DeviceTiles:
    """A row of devices.json.

    Attributes:
      kernel: name of the kernel.
      cores: items that run in parallel.
      by_rows: tile sizes, from few rows to many.
      full: tile sizes of full attention over short sequences.
      full_width: head width to which heads are padded there.
    """

    kernel: str
    cores: int
    by_rows: tuple[TileSizes, ...]
    full: TileSizes
    full_width: int


@cache
def _table() -> list[dict[str, Any]]:
    return json.loads(Path(__file__).with_name("devices.json").read_text())


def lookup(kernel: str, device_kind: str) -> DeviceTiles:
    """The first row of a kernel whose pattern matches the device kind, else the kernel's last row, which is safe."""
    rows = [row for row in _table() if row["kernel"] == kernel]
    row = next((row for row in rows if re.search(row["device"], device_kind, re.IGNORECASE)), rows[-1])
    by_rows = tuple(TileSizes(**tiles) for tiles in row["by_rows"])
    return DeviceTiles(kernel, row["cores"], by_rows, TileSizes(**row["full"]), row["full_width"])
