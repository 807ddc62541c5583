"""Seconds per stage, with compilation counted separately."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import jax

COMPILE = "compile"
"""The stage that counts tracing, compiling and loading compiled programs from disk."""

_PREFIXES = ("/jax/core/compile/", "/jax/compilation_cache/")
_thread = threading.local()


def _record_compilation(event: str, duration_secs: float, **_: str | int) -> None:
    """Record when this thread compiled. Events can be nested: an outer one replaces those inside it."""
    if not event.startswith(_PREFIXES) or "saved" in event or not hasattr(_thread, "intervals"):
        return
    stop = time.perf_counter()
    start, intervals = stop - duration_secs, _thread.intervals
    while intervals and intervals[-1][0] >= start - 1e-4:
        intervals.pop()
    intervals.append((start, stop))


jax.monitoring.register_event_duration_secs_listener(_record_compilation)


@contextmanager
def timed(timings: dict[str, float] | None, stage: str) -> Generator[None, None, None]:
    """Add the seconds spent inside to `timings[stage]`, and those spent compiling to `timings["compile"]` instead.

    Does nothing if `timings` is None. Must not be nested.
    """
    if timings is None:
        yield
        return
    _thread.intervals, start = [], time.perf_counter()
    try:
        yield
    finally:
        total = time.perf_counter() - start
        compiling = min(sum(stop - start for start, stop in _thread.intervals), total)
        del _thread.intervals
        timings[stage] = timings.get(stage, 0.0) + total - compiling
        if compiling:
            timings[COMPILE] = timings.get(COMPILE, 0.0) + compiling
