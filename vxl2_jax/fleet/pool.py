"""A fleet of processes on this machine, each on devices of its own.

Items are handed out as workers become free, the longest first. A worker that dies is started again. The items that it had
are then tried one at a time in a worker, so that it is certain which of them kills workers.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import IO

from vxl2_jax.errors import RequestError, ToyModelWarning
from vxl2_jax.fleet import child
from vxl2_jax.fleet.places import Place, child_environment
from vxl2_jax.fleet.work import MAX_DEATHS, FleetLog, Recipe, WorkItem, WorkResult, death_row, longest_first

_AHEAD = 2
"""Items that a worker has: the one it works on, and the next, which it opens meanwhile."""


class _Process:
    """A worker process. items: those it was given and has not answered, in order; flushed: whether it was sent `child.FLUSH`:
    no other item follows until these are answered, so it does not wait for one."""

    def __init__(self, name: str, place: Place, recipe: bytes) -> None:
        self.name, self.place, self.ready = name, place, False
        self.items: deque[WorkItem] = deque()
        self.flushed = False
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `end`)
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", child.__name__, str(theirs.fileno())],
                env=child_environment(place.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                pass_fds=[theirs.fileno()],
            )
        with suppress(OSError):  # it died: the next read says so
            self.connection.send(place)
            self.connection.send_bytes(recipe)

    def give(self, item: WorkItem) -> None:
        self.items.append(item)
        with suppress(OSError):
            self.connection.send_bytes(pickle.dumps(item.content))

    def flush(self) -> None:
        self.flushed = True
        with suppress(OSError):
            self.connection.send_bytes(child.FLUSH)

    def end(self) -> str:
        """End it. Returns how it ended: the name of a signal or an exit code, and the last line on its standard error."""
        self.connection.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.5)  # it may be about to end by itself, whose code says more
        self.process.kill()
        code = self.process.wait()
        self.errors.seek(max(self.errors.seek(0, os.SEEK_END) - 4096, 0))
        last = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
        self.errors.close()
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return ": ".join([how, *(line[:300] for line in last)])

    def kill(self) -> None:
        """End it without asking how."""
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self.errors.close()


class _Queue:
    """Items that wait: `fresh` ones, the longest first, and `suspects`, which were in a worker that died."""

    def __init__(self, items: Sequence[WorkItem]) -> None:
        self.fresh, self.suspects = deque(longest_first(items)), deque[WorkItem]()

    def __bool__(self) -> bool:
        return bool(self.fresh or self.suspects)

    def feed(self, worker: _Process, workers: int) -> None:
        """Give a worker what it should have. `workers`: how many there are."""
        if not worker.items:
            worker.flushed = False
        while worker.ready and not worker.flushed and len(worker.items) < _AHEAD:
            if self.suspects and not worker.items:
                worker.give(self.suspects.popleft())
                worker.flush()
            elif self.fresh and not self.suspects and (not worker.items or len(self.fresh) >= workers):
                # An item ahead waits for its worker, so none is given where another worker may soon need it.
                worker.give(self.fresh.popleft())
            else:
                return worker.flush() if worker.items else None


def run(recipe: Recipe, items: Sequence[WorkItem], log: FleetLog, *, places: Sequence[Place]) -> Iterator[WorkResult]:
    """See `work.Fleet`. One worker for each place, but no more than items.

    Raises what a recipe raises, and RequestError if workers end before they are ready.
    """
    found = places[: len(items)]
    queue, deaths, failures = _Queue(items), Counter[int](), Counter[str]()
    packed, left = pickle.dumps(recipe), len(items)
    workers: dict[Connection, _Process] = {}

    def start(name: str, place: Place) -> None:
        worker = _Process(name, place, packed)
        log.worker(name).device = place.name
        workers[worker.connection] = worker

    try:
        for number, place in enumerate(found):
            start(str(number), place)
        while left:
            ready = wait(list(workers))
            for worker in [one for one in workers.values() if one.connection in ready]:
                entry = log.worker(worker.name)
                try:
                    kind, what = worker.connection.recv()
                except (EOFError, OSError):
                    del workers[worker.connection]
                    reason = worker.end()
                    yield from (dead := _after_death(worker, queue, deaths, reason, log))
                    left -= len(dead)
                    failures[worker.name] = 0 if worker.ready else failures[worker.name] + 1
                    if not queue:
                        pass
                    elif failures[worker.name] < MAX_DEATHS:
                        entry.restarts += 1
                        start(worker.name, worker.place)
                    elif not workers:
                        raise RequestError(f"workers end before they are ready ({reason}): start one alone") from None
                    continue
                if kind == child.READY:
                    worker.ready = True
                    entry.about, seconds = what
                    entry.loading_s += seconds
                elif kind == child.WARNING:
                    warnings.warn(what, ToyModelWarning, stacklevel=2)
                elif kind == child.FAILED:
                    raise what if isinstance(what, Exception) else RuntimeError(what)
                else:
                    row, seconds = what
                    item = worker.items.popleft()
                    left -= 1
                    entry.items += 1
                    entry.busy_s += seconds
                    queue.feed(worker, len(found))
                    yield WorkResult(item, row, worker.name)
            for worker in workers.values():  # others may have become free for what a dead one had
                queue.feed(worker, len(found))
    finally:
        for worker in workers.values():
            worker.kill()


def _after_death(worker: _Process, queue: _Queue, deaths: Counter[int], reason: str, log: FleetLog) -> list[WorkResult]:
    """Put what a dead worker had back into the queue. Returns results for what has ended too many."""
    alone, ended = len(worker.items) == 1, []
    for number, item in enumerate(worker.items):
        deaths[id(item)] += number == 0  # the one ahead is a suspect only, since it is opened meanwhile
        if alone and deaths[id(item)] >= MAX_DEATHS:
            ended.append(WorkResult(item, death_row(reason), worker.name))
        else:
            log.retries += 1
            queue.suspects.append(item)
    return ended
