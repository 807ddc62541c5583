"""What the two sides of a comparison do alike, each in its own process: cores, clock, memory, what is compared."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from experiments.bench import resident
from experiments.bench.process import say


def confine(threads: int | None) -> int:
    """Let this process run on so many cores only (None: all it may use); to be called before a library counts them.

    Returns how many they are. Where the system has no such limit (only Linux has) they are all. Where JAX is told to keep
    programs, those made for so many cores are kept by themselves: it does not tell them from others.
    """
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    if kept := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(kept, f"{len(cores)}-cores")
    return len(cores)


def measure(once: Callable[[], Any], again: Iterable[dict], **about: Any) -> Any:
    """Print the memory of a first run, then the seconds of one more for each that is asked: by the clock, and of all cores.

    Whatever is compiled, and has run once on something small, is loaded and not counted. Returns the last result.
    """
    loaded = resident.settle()
    result = once()
    say(loaded_bytes=loaded, peak_bytes=resident.peak(), **about)
    for _ in again:
        del result
        start, busy = time.perf_counter(), time.process_time()
        result = once()
        say(seconds=time.perf_counter() - start, core_seconds=time.process_time() - busy)
    return result


def sampled(length: int) -> np.ndarray:
    """int [≤ 256]: the positions whose keys and values are compared, first and last among them."""
    return np.unique(np.linspace(0, length - 1, 256).round().astype(int))
