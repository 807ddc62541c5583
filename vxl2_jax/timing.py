"""Seconds per stage, for those who ask; what compiling took is told apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

COMPILE = "compile"
"""The stage under which tracing, compiling and fetching compiled programs from disk are booked."""

_PREFIXES = ("/jax/core/compile/", "/jax/compilation_cache/")
_spans = threading.local()


def _heard(event: str, duration: float, **_: object) -> None:
    """Remember when this thread compiled. Events may lie within each other: the outer one swallows the inner."""
    if not event.startswith(_PREFIXES) or "saved" in event or not hasattr(_spans, "found"):
        return
    stop = time.perf_counter()
    start, found = stop - duration, _spans.found
    while found and found[-1][0] >= start - 1e-4:
        found.pop()
    found.append((start, stop))


jax.monitoring.register_event_duration_secs_listener(_heard)


@contextmanager
def timed(timings: dict[str, float] | None, stage: str) -> Iterator[None]:
    """Add the time spent inside to `timings[stage]`, less what was spent compiling, which goes to
    `timings["compile"]`; nothing when `timings` is None. Not to be nested."""
    if timings is None:
        yield
        return
    _spans.found, start = [], time.perf_counter()
    try:
        yield
    finally:
        whole = time.perf_counter() - start
        compiling = min(sum(b - a for a, b in _spans.found), whole)
        del _spans.found
        timings[stage] = timings.get(stage, 0.0) + whole - compiling
        if compiling:
            timings[COMPILE] = timings.get(COMPILE, 0.0) + compiling
