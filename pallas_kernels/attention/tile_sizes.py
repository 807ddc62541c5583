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
      other_keys: keys of a tile in all streams but the first, where the backend allows a choice; 0: the same.
      parallel: items processed side by side in one batched product (reference only).
      kept: rows of a tile, from the first, whose results are read, so that a kernel may leave out the others; 0: all.
    """

    rows: int
    keys: int
    stages: int = 2
    warps: int = 4
    other_keys: int = 0
    parallel: int = 1
    kept: int = 0


@dataclass(frozen=True)
class DeviceTiles:
    """A row of devices.json: all that differs between devices in how attention is computed on them.

    Attributes:
      kernel: name of the kernel.
      concurrent_items: items that the device runs at once (A100: two on each of 108 multiprocessors).
      persistent: the kernel runs the items of `TileSchedule.first_item` in one program, so that segments are divided into
        as many shares as the device runs programs at once.
      row_tiles: tile sizes, fewest rows first; a call takes the first that holds all its rows.
      full: tile sizes of full attention over short sequences (the patches of a frame); None: whole matrices of logits.
      full_width: head width to which heads are padded there.
      equal_tiles: tiles may have any number of rows, so the rows of a call are divided into equal ones.
      segment_tiles: tile sizes for reading segments with their rows sorted by key (`decode.by_rows`): first of whole
        caches, then of the segments of each level (the last one also for further levels). Empty: segments are split into
        items instead, which are read once for all questions of a batch (`decode.by_items`).
      chunks_per_step: chunks that relevance scores in one step; None: all in one call of the kernel, or where that does not
        take the model's head width, one by one, without copying their keys.
      keys_per_step: keys per step where attention is summed per key.
    """

    kernel: str
    concurrent_items: int
    row_tiles: tuple[TileSizes, ...]
    full: TileSizes | None
    full_width: int = 0
    persistent: bool = False
    equal_tiles: bool = False
    segment_tiles: tuple[TileSizes, ...] = ()
    chunks_per_step: int | None = 32
    keys_per_step: int = 8192


@cache
def _table() -> list[dict[str, Any]]:
    return json.loads(Path(__file__).with_name("devices.json").read_text())


def lookup(kernel: str, device_kind: str) -> DeviceTiles:
    """The first row of a kernel whose pattern matches the device kind, else the kernel's last row, which is safe."""
    rows = [row for row in _table() if row["kernel"] == kernel]
    row = dict(next((row for row in rows if re.search(row["device"], device_kind, re.IGNORECASE)), rows[-1]))
    del row["device"]
    row["full"] = TileSizes(**row["full"]) if "full" in row else None
    for name in ("row_tiles", "segment_tiles"):
        row[name] = tuple(TileSizes(**tiles) for tiles in row.get(name, ()))
    return DeviceTiles(**row)
