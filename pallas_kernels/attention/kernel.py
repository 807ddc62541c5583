"""Kernels as data: a name, and what differs between the devices that it runs on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType

from pallas_kernels.attention import tile_sizes
from pallas_kernels.attention.tile_sizes import TileSizes

NAMES = ("auto", "tpu", "hopper", "ampere", "reference")


class _Backends(dict[str, ModuleType]):
    def __missing__(self, name: str) -> ModuleType:
        return self.setdefault(name, import_module(f"pallas_kernels.attention.{name}"))


BACKENDS: dict[str, ModuleType] = _Backends()
"""Modules of this folder by name, imported when they are first used: importing Pallas takes 0.8 seconds."""


@dataclass(frozen=True)
class Kernel:
    """A kernel with what differs between devices, as jitted functions take it: static and hashable.

    For the fields see `tile_sizes.DeviceTiles`. interpret: run in Pallas' interpreter on the CPU, for checking.
    differentiates: False where the backend's gradient failed its self-test.
    """

    name: str
    concurrent_items: int
    row_tiles: tuple[TileSizes, ...]
    full: TileSizes | None = None
    full_width: int = 0
    persistent: bool = False
    equal_tiles: bool = False
    segment_tiles: tuple[TileSizes, ...] = ()
    chunks_per_step: int | None = 32
    keys_per_step: int = 8192
    interpret: bool = False
    differentiates: bool = True

    @property
    def backend(self) -> ModuleType:
        """The module with the kernel's `attend_tiles`, `refusal`, `WIDTH_MULTIPLE` and `READS_INT8` (see
        docs/how-to/kernel.md); that for TPUs has more: `log_sum_exp`; `frames_refusal` and
        `attend_frames`; `gradient_refusal`, `gradient_rows` and `attend_gradients`."""
        return BACKENDS[self.name]

    @property
    def max_keys(self) -> tuple[int, int]:
        """The most keys of a tile, in the first stream and in others."""
        return max(t.keys for t in self.row_tiles), max(t.other_keys or t.keys for t in self.row_tiles)

    @property
    def reads_by_rows(self) -> bool:
        """How segments are read: their rows sorted by key (`decode.by_rows`), or split into items (`decode.by_items`)."""
        return bool(self.segment_tiles)

    def moves_ranges(self, width: int) -> bool:
        """Whether the backend's `log_sum_exp` serves key ranges that are moved, for heads of this width."""
        return self.chunks_per_step is None and (self.interpret or width == self.backend.LANES)

    def tiles_for(self, rows: int) -> TileSizes:
        """The smallest tile that holds `rows` packed rows of a key head, else the largest."""
        return self._equal(next((t for t in self.row_tiles if t.rows >= rows), self.row_tiles[-1]), rows)

    def segment_tiles_for(self, rows: int, level: int | None = None, alike: int = 1) -> TileSizes:
        """The tile for `rows` packed rows that are sorted by their keys (`decode.by_rows`).

        level: 0 for the dense, 1 for the sparse level; None where each question reads one whole cache. alike: the rows of
        one question that read the same segment. Raises ValueError if the kernel reads items instead.
        """
        if not self.reads_by_rows:
            raise ValueError(f"the {self.name} kernel has no segment tiles on this device: it reads items")
        whole = self.segment_tiles[0]
        tile = whole if level is None else self.segment_tiles[min(level + 1, len(self.segment_tiles) - 1)]
        if 2 * alike < tile.rows:  # its rows read several segments, and so, together, what lies between them
            tile = replace(tile, keys=whole.keys, other_keys=whole.other_keys)
        # Few rows are better read in parallel than in one tile, whose keys would span all segments.
        return self._equal(replace(tile, rows=max(1, min(tile.rows, -(-rows // tile.parallel)))), rows)

    def _equal(self, tile: TileSizes, rows: int) -> TileSizes:
        return replace(tile, rows=-(-rows // -(-rows // tile.rows))) if self.equal_tiles and rows else tile


def kernel_for(name: str, device_kind: str, interpret: bool = False) -> Kernel:
    """The kernel `name` with the tiles of a device kind; the safest ones where the kind is unknown."""
    found = dict(vars(tile_sizes.lookup(name, device_kind)))
    del found["kernel"]
    if interpret:  # one item at a time: splitting work for many would only add steps
        found["concurrent_items"] = 1
    return Kernel(name, **found, interpret=interpret)


REFERENCE = kernel_for("reference", "cpu")
"""The reference with a CPU's tiles: what functions use where no kernel is given."""
