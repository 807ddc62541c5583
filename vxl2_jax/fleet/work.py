"""What is handed to workers, what they are, and what comes back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vxl2_jax.files import is_address

MAX_DEATHS = 3
"""After this many workers have died while working on an item, the last of them with no other item, it gets a row with an
error."""


@dataclass(frozen=True)
class WorkItem:
    """One video with what is asked about it.

    Attributes:
      key: the caller's name of it.
      content: what a worker gets: small, and to be pickled. Paths, never frames.
      size: what it costs compared with others; see `size_of`.
    """

    key: Any
    content: Any
    size: float = 0.0


class WorkResult(NamedTuple):
    """The row that a worker made of an item, and the worker's name in the log. {"error": …} if the item ends workers."""

    item: WorkItem
    row: dict[str, Any]
    worker: str


class FleetWorker(NamedTuple):
    """A worker that has loaded what it needs.

    Attributes:
      about: JSON-ready facts, such as the model's.
      rows: contents of items → a row for each, in order. It may take one content ahead of the row that it makes.
    """

    about: dict[str, Any]
    rows: Callable[[Iterator[Any]], Iterator[dict[str, Any]]]


Recipe = Callable[[], FleetWorker]
"""Makes a worker, in the process and on the device that it is called in. To be pickled."""


@dataclass
class WorkerLog:
    """What one worker did. Seconds: `loading_s` until it was ready, `busy_s` from an item to its row.

    about: see `FleetWorker`; None before it is ready. device: what it computes on. restarts: how often it was started again.
    """

    about: dict[str, Any] | None = None
    device: str = ""
    items: int = 0
    loading_s: float = 0.0
    busy_s: float = 0.0
    restarts: int = 0


@dataclass
class FleetLog:
    """What a fleet did, by worker. retries: items that were handed out again after a death."""

    workers: dict[str, WorkerLog] = field(default_factory=dict)
    retries: int = 0

    def worker(self, name: str) -> WorkerLog:
        """The entry of a worker, made if it is new."""
        return self.workers.setdefault(name, WorkerLog())

    @property
    def about(self) -> dict[str, Any] | None:
        """The facts of the first worker that is ready."""
        return next((one.about for one in self.workers.values() if one.about is not None), None)

    def as_data(self, wall_s: float) -> dict[str, Any]:
        """JSON-ready, for a run of `wall_s` seconds. A worker is idle while it neither loads nor works."""
        return {
            "wall_s": round(wall_s, 2),
            "videos": sum(one.items for one in self.workers.values()),
            "retries": self.retries,
            "workers": {name: _worker_data(one, wall_s) for name, one in sorted(self.workers.items())},
        }


def _worker_data(one: WorkerLog, wall_s: float) -> dict[str, Any]:
    return {
        "device": one.device,
        "videos": one.items,
        "videos_per_hour": round(3600 * one.items / wall_s, 1) if wall_s else 0.0,
        "loading_s": round(one.loading_s, 2),
        "busy_s": round(one.busy_s, 2),
        "idle_s": round(max(wall_s - one.loading_s - one.busy_s, 0.0), 2),
        "restarts": one.restarts,
    }


Fleet = Callable[[Recipe, Sequence[WorkItem], FleetLog], Iterator[WorkResult]]
"""(recipe, items, log) → a result for each item, in any order. The log is written meanwhile."""


def longest_first(items: Iterable[WorkItem]) -> list[WorkItem]:
    """The items by size, largest first: a long one at the end would keep one worker busy while the others wait."""
    return sorted(items, key=lambda item: -item.size)


def size_of(path: str | os.PathLike) -> float:
    """Bytes of a video file, by which videos are handed out longest first; 0 where it cannot be known here."""
    try:
        return 0.0 if is_address(path) else float(os.stat(path).st_size)
    except (OSError, ValueError):  # the worker that opens it will say what is wrong
        return 0.0


def death_row(reason: str, deaths: int = MAX_DEATHS) -> dict[str, Any]:
    """The row of an item that ends its workers."""
    return {"error": f"its worker ended {deaths} times while it had this video ({reason}); try it alone"}
