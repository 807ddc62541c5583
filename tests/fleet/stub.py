"""A worker without a model: contents are (name, what to do), rows name the process and its place."""

import os
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vxl2_jax.errors import RequestError, ToyModelWarning
from vxl2_jax.fleet.work import FleetLog, FleetWorker, WorkItem


@dataclass(frozen=True)
class Stub:
    """folder: where it notes what it has begun with. fails: what making a worker does."""

    folder: Path
    fails: str = ""

    def __call__(self) -> FleetWorker:
        if self.fails == "refuse":
            raise RequestError("no such model")
        if self.fails == "die":
            os._exit(3)
        return FleetWorker({"pid": os.getpid()}, self._rows)

    def _rows(self, contents: Iterator[tuple[str, str]]) -> Iterator[dict]:
        for name, what in contents:
            begun = self.folder / f"{name}-{os.getpid()}-{time.monotonic_ns()}"
            begun.touch()
            if what == "kill" or (what == "kill once" and len(list(self.folder.glob(f"{name}-*"))) == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "raise":
                raise ValueError("nobody expected this")
            if what == "warn":
                warnings.warn("a toy", ToyModelWarning, stacklevel=1)
            if what == "wait":
                time.sleep(600)
            cores = sorted(os.sched_getaffinity(0))
            yield {"name": name, "pid": os.getpid(), "cores": cores, "cards": os.environ.get("CUDA_VISIBLE_DEVICES")}

    def begun(self) -> list[str]:
        """The names in the order in which workers began with them."""
        notes = (path.name.split("-") for path in self.folder.iterdir())
        return [name for name, _, _ in sorted(notes, key=lambda note: int(note[2]))]


def items(*whats: str) -> list[WorkItem]:
    """Items named 0, 1, …; the later ones are the larger ones."""
    return [WorkItem(number, (str(number), what), size=number) for number, what in enumerate(whats)]


def answered(fleet, recipe: Stub, given: list[WorkItem]) -> tuple[dict[int, list[dict]], FleetLog]:
    """(rows by key, the log)."""
    log, rows = FleetLog(), {}
    for result in fleet(recipe, given, log):
        rows.setdefault(result.item.key, []).append(result.row)
    return rows, log
