"""The machine that measures: what it is, whether its clock says anything, what fits its memory."""

from __future__ import annotations

import datetime
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

NOT_MEASURED = "CPU, kernels interpreted: timings mean nothing"
"""Said in every table, file and plot made without an accelerator."""
GIB = 2**30


def is_accelerator(device: Any) -> bool:
    return device.platform != "cpu"


def describe(device: Any) -> dict[str, Any]:
    """Device, versions, commit and date, as they go into the results."""
    return {
        "device": device.device_kind if is_accelerator(device) else f"CPU ({platform.machine()})",
        "platform": device.platform,
        "timings": "measured" if is_accelerator(device) else NOT_MEASURED,
        **{package: _version(package) for package in ("jax", "jaxlib", "torch")},
        "python": platform.python_version(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def memory_bytes(device: Any) -> int:
    """Memory that arrays can use: of the device, or a small share of a CPU's."""
    limit = (device.memory_stats() or {}).get("bytes_limit") if is_accelerator(device) else None
    return limit or (16 * GIB if is_accelerator(device) else 2 * GIB)


def backends(device: Any) -> list[str]:
    """The attention kernels to measure where none are named."""
    if device.platform == "tpu":
        return ["tpu"]
    if is_accelerator(device):
        return ["hopper", "ampere"] if int(float(device.compute_capability)) == 9 else ["ampere"]
    return ["tpu", "ampere", "reference"]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, with a + where the working tree differs; None outside a repository."""

    def git(*words):
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
