"""Cores and memory of this process, and timed runs in it. Needs neither JAX nor PyTorch: workers of both import it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from experiments.bench.workers import reply

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def limit_cores(threads: int | None) -> int:
    """Let this process run on `threads` cores only (None: all), before a library counts them. Returns their number.

    Only Linux has such a limit. JAX's compilation cache does not distinguish programs by the number of cores: each
    number gets a folder of its own.
    """
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    if cache := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(cache, f"{len(cores)}-cores")
    return len(cores)


def reset_peak() -> int:
    """Return freed memory to the system, reset the peak of resident memory (on Linux only), return resident bytes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
    return _status("VmRSS") or peak()


def peak() -> int:
    """The peak of resident bytes since `reset_peak`."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return _status("VmHWM") or usage  # getrusage may report the peak of the program that started this one


def run_repeatedly(run: Callable[[], Any], requests: Iterable[dict], **about: Any) -> Any:
    """Reply with the memory of a first run, then with the seconds of one more run per request. Returns the last result.

    Whatever was compiled, and has run once on something small, is part of `loaded_bytes`.
    """
    loaded = reset_peak()
    result = run()
    reply(loaded_bytes=loaded, peak_bytes=peak(), **about)
    for _ in requests:
        del result
        start, cpu_start = time.perf_counter(), time.process_time()
        result = run()
        reply(seconds=time.perf_counter() - start, core_seconds=time.process_time() - cpu_start)
    return result


def _status(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
