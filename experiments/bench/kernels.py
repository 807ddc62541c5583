"""Our attention kernels by name and tile sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from experiments.bench.machine import Session, is_accelerator
from pallas_kernels import attention
from pallas_kernels.attention import Kernel
from pallas_kernels.attention.tile_sizes import TileSizes

NAMES = [name for name in attention.NAMES if name != "auto"]


def written_for(device: Any) -> list[str]:
    """The kernels to measure where none are named."""
    if device.platform == "tpu":
        return ["tpu"]
    if is_accelerator(device):
        return ["hopper", "ampere"] if int(float(device.compute_capability)) == 9 else ["ampere"]
    return ["tpu", "ampere", "reference"]


def candidates(session: Session, width: int, *, tiles: bool = True) -> list[tuple[str, Callable[[], Kernel]]]:
    """(name, function that makes the kernel) of --backends, each with every one of --tiles.

    Making one raises ValueError where it cannot run with heads of `width`.
    """
    make = partial(_make, width=width, dtype=session.args.dtype, device=session.device)
    found = []
    for name in session.args.backends:
        for size in session.args.tiles if tiles and name != "reference" and session.args.tiles else [None]:
            label = name if size is None else f"{name} {size.rows},{size.keys},{size.stages},{size.warps}"
            found.append((label, partial(make, name, size)))
    return found


def _make(name: str, tiles: TileSizes | None, *, width: int, dtype: str, device: Any) -> Kernel:
    kernel = attention.choose_kernel(name, dtype=dtype, width=width, device=device).kernel
    return kernel if tiles is None else replace(kernel, row_tiles=(tiles,), full=tiles)


def note(kernel: Kernel) -> str:
    return "interpreted" if kernel.interpret else ""
