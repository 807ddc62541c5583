"""A fleet of one: this process, in the order of the items."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from vxl2_jax.fleet.work import FleetLog, Recipe, WorkItem, WorkResult

NAME = "here"


def run(recipe: Recipe, items: Sequence[WorkItem], log: FleetLog) -> Iterator[WorkResult]:
    """See `work.Fleet`. Nothing guards against items that end the process."""
    entry, started = log.worker(NAME), time.perf_counter()
    worker = recipe()
    entry.about, entry.loading_s = worker.about, time.perf_counter() - started
    taken: deque[WorkItem] = deque()

    def contents() -> Iterator[Any]:
        for item in items:
            taken.append(item)
            yield item.content

    since = time.perf_counter()
    for row in worker.rows(contents()):
        entry.items += 1
        entry.busy_s += time.perf_counter() - since
        yield WorkResult(taken.popleft(), row, NAME)
        since = time.perf_counter()
