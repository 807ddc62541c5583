"""What suits the machine that runs: dtype, how much to do at a time, and how much memory there is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax


class BatchSizes(NamedTuple):
    """stride: groups fed through the language model at a time; vision_groups: groups whose frames go through
    the vision tower at a time, which divides `stride`."""

    stride: int
    vision_groups: int


SMALL = BatchSizes(stride=40, vision_groups=4)
"""What a stride costs however many groups it has is, for nano on two CPU cores, as much as 6 groups; and the last one is
half empty on average. For videos of some minutes this is about the best between the two."""
LARGE = BatchSizes(stride=64, vision_groups=16)
"""Timestamps look back over the whole video, and there are few of them: large strides make their tiles many."""


class CompilerTraits(NamedTuple):
    """How XLA compiles the model's programs on a platform, as far as memory is concerned.

    slices_layers: it copies one layer's weights out of the stacked weights; fuses_pooling: the sparse level is made
    without an array of all un-rotated keys; lanes: the last dimension of an array is padded to multiples of this.
    """

    slices_layers: bool = True
    fuses_pooling: bool = False
    lanes: int = 1


COMPILERS = {
    "cpu": CompilerTraits(),
    "gpu": CompilerTraits(fuses_pooling=True),
    "tpu": CompilerTraits(slices_layers=False, lanes=128),
}


def capability(device: Any) -> float:
    """CUDA compute capability; 0 for other devices."""
    return float(getattr(device, "compute_capability", 0) or 0)


def default_dtype(device: Any) -> str:
    """float32 on a CPU; float16 on NVIDIA cards without bfloat16 (T4 and older); else bfloat16."""
    if device.platform == "cpu":
        return "float32"
    return "float16" if 0 < capability(device) < 8 else "bfloat16"


def sizes_for(device: Any) -> BatchSizes:
    """Large strides on accelerators with the memory for them; small ones on a CPU and on older cards."""
    return SMALL if device.platform == "cpu" or 0 < capability(device) < 8 else LARGE


def cpu_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def memory_bytes(device: Any, proc: Path = _PROC, groups: Path = _GROUPS) -> int | None:
    """Memory that this process can have on a device, what it has already included; None where that is unknown.

    Of an accelerator: the limit of its allocator. Of a CPU: what is free and what the process holds, or the limit of
    a control group it is in, whichever is less. proc, groups: where Linux tells of them.
    """
    if device.platform != "cpu":
        return _stats(device).get("bytes_limit")
    limits = list(_group_limits(proc, groups))
    free, held = _kilobytes(proc / "meminfo", "MemAvailable"), _kilobytes(proc / "self" / "status", "VmRSS")
    if free is not None and held is not None:
        limits.append(1024 * (free + held))
    return min(limits, default=None)


def used_bytes(device: Any, proc: Path = _PROC) -> int | None:
    """What this process has of that memory now; None where that is unknown."""
    if device.platform != "cpu":
        return _stats(device).get("bytes_in_use")
    held = _kilobytes(proc / "self" / "status", "VmRSS")
    return None if held is None else 1024 * held


def clear_jit_caches(share: float = 0.5, proc: Path = _PROC) -> bool:
    """Let compiled programs go if this process has used up a share of the memory maps that Linux allows it; whether so.

    Each of XLA's CPU programs keeps ten maps and more, of 65,530 as a rule, and the program that is refused one ends the
    process without a word. All that JAX has compiled in this process goes, save what runs; what is wanted again is compiled
    again, or fetched from JAX's cache on disk where there is one (the command line has). Elsewhere than on a CPU: nothing.
    """
    if jax.default_backend() != "cpu":
        return False
    most = _read(proc / "sys" / "vm" / "max_map_count").strip()
    if not most.isdigit() or _read(proc / "self" / "maps").count("\n") <= share * int(most):
        return False
    jax.clear_caches()
    return True


def _stats(device: Any) -> dict[str, int]:
    try:
        return device.memory_stats() or {}
    except (NotImplementedError, RuntimeError):  # not every runtime keeps count
        return {}


def _kilobytes(path: Path, name: str) -> int | None:
    """The number of a line such as "MemAvailable:  123 kB"."""
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    return None


def _group_limits(proc: Path, groups: Path) -> Iterator[int]:
    """Limits of the process's control group and of those around it, versions 1 and 2 of the interface."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        # Inside a container the path may be that of the host, and only the root is there.
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            limit = _read(root.joinpath(*parts[:depth]) / name).strip()
            if limit.isdigit():  # or "max"
                yield int(limit)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
