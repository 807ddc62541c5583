"""Our kernels by name, with tile sizes other than the tuned ones where asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments.bench import machine, options
from pallas_kernels import attention
from pallas_kernels.attention import Kernel
from pallas_kernels.attention.tile_sizes import TileSizes

_KNOWN = [name for name in attention.NAMES if name != "auto"]


def chosen(device: Any) -> list[str]:
    """The names of --backends, or those written for the device."""
    return options.names(options.BACKENDS, _KNOWN, machine.backends(device))


def label(name: str, tiles: TileSizes | None) -> str:
    """The name, and the tiles where they were asked for."""
    return name if tiles is None else f"{name} {tiles.rows},{tiles.keys},{tiles.stages},{tiles.warps}"


def kernel(name: str, tiles: TileSizes | None, *, width: int, dtype: str, device: Any) -> Kernel:
    """A kernel by name. Raises ValueError, with the reason, where it cannot run."""
    found = attention.choose_kernel(name, dtype=dtype, width=width, device=device).kernel
    if tiles is None or name == "reference":
        return found
    return replace(found, row_tiles=(tiles,), full=tiles)


def remark(found: Kernel) -> str:
    return "interpreted" if found.interpret else ""
