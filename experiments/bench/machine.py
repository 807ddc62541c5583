"""The machine that measures, and one run of a benchmark on it."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jaxlib

from experiments.bench.report import Report

NOT_MEASURED = "CPU, kernels interpreted: timings mean nothing"
"""Marks every table, file and plot of kernels that ran without an accelerator."""


class UsageError(Exception):
    """Flags that are inconsistent, or ask for what this machine cannot do; one line."""


@dataclass(frozen=True)
class Session:
    """One run: the command line's arguments, the device (jax.Device) and the report."""

    args: argparse.Namespace
    device: Any
    report: Report

    @property
    def accelerator(self) -> bool:
        return is_accelerator(self.device)


def is_accelerator(device: Any) -> bool:
    return device.platform != "cpu"


def describe(device: Any) -> dict[str, Any]:
    """Device, versions, load, commit and date, as they go into the results."""
    accelerator = is_accelerator(device)
    return {
        "device": device.device_kind if accelerator else f"CPU ({platform.machine()})",
        "platform": device.platform,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
        "timings": "measured" if accelerator else NOT_MEASURED,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def memory_bytes(device: Any) -> int:
    """Bytes that arrays may take: all of an accelerator's, 2 GiB of a CPU's."""
    if not is_accelerator(device):
        return 2 * 2**30
    return (device.memory_stats() or {}).get("bytes_limit") or 16 * 2**30


def commit() -> str | None:
    """The commit, with a + where the working tree differs; None outside a repository."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
