"""Resident memory of this process: how much, and the most since it was last asked to settle."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def settle() -> int:
    """Give freed memory back to the system, start the peak anew, and return the resident bytes.

    Where the system allows no new start (only Linux does) a peak may be older than this call.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
    return _status("VmRSS") or peak()


def peak() -> int:
    """The most bytes that were resident since `settle`.

    Linux: the high-water mark of this program; the one of getrusage may be that of the program which started it.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return _status("VmHWM") or usage


def _status(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
