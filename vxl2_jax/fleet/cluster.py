"""A fleet of actors on a Ray cluster, through Ray Data: it starts workers, restarts them and grows their number.

Paths and options travel to the workers, and rows back. Ray retries what a dead worker had, without end; a ledger on the
driver's machine counts how often each item was begun, so that one that ends its workers becomes a row.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import socket
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vxl2_jax.errors import RequestError, ToyModelWarning, Vxl2Error, first_line
from vxl2_jax.fleet.work import MAX_DEATHS, FleetLog, Recipe, WorkItem, WorkResult, death_row, longest_first

_COLUMN = "pickled"
KINDS = ("gpu", "tpu", "cpu")
_ANSWER_S = 10.0
"""A cluster whose port has not answered by then is not there."""


@dataclass(frozen=True)
class ClusterSettings:
    """What to ask of a cluster.

    Attributes:
      address: of the cluster; "": that of RAY_ADDRESS, else the one of this machine, else one that is started here.
      workers: (at least, at most) so many; None: as many as the cluster has, or can start, resources for.
      each: devices of one worker.
      kind: of `KINDS`; None: the first one that the cluster has.
    """

    address: str = ""
    workers: tuple[int, int | None] = (1, None)
    each: int = 1
    kind: str | None = None


def run(recipe: Recipe, items: Sequence[WorkItem], log: FleetLog, *, settings: ClusterSettings) -> Iterator[WorkResult]:
    """See `work.Fleet`.

    Raises what a recipe raises, and RequestError if Ray is not installed, there is no such cluster, or it ends.
    """
    ray, data = _import()
    started = not ray.is_initialized()
    if started:
        _connect(ray, settings.address)
    try:
        yield from _run(ray, data, recipe, items, log, settings)
    except ray.exceptions.RayError as error:
        raise RequestError(f"the Ray cluster ended the work ({first_line(error)}): the same command resumes") from error
    finally:
        if started:
            ray.shutdown()


def _import() -> tuple[Any, Any]:
    """(ray, ray.data). Raises RequestError if Ray is not installed."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray asks for a choice
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RequestError(f'Ray is not installed ({first_line(error)}): pip install "vxl2_jax[ray]"') from error
    return ray, ray.data


def _connect(ray: Any, address: str) -> None:
    try:
        _check_reachable(address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(address or None, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises ConnectionError, ValueError and others
        raise RequestError(
            f"no Ray cluster at {address or 'this machine'} ({first_line(error)}): start one by `ray start --head`, or "
            "give its address"
        ) from error


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing answers at HOST:PORT, or ray://HOST:PORT: Ray would try for minutes."""
    if match := re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:([0-9]{1,5})", address):
        socket.create_connection((match[1], int(match[2])), timeout=_ANSWER_S).close()


def _run(
    ray: Any, data: Any, recipe: Recipe, items: Sequence[WorkItem], log: FleetLog, settings: ClusterSettings
) -> Iterator[WorkResult]:
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ordered = longest_first(items)
    ledger = _start_ledger(ray)
    rows = [{_COLUMN: pickle.dumps((number, item.content))} for number, item in enumerate(ordered)]
    fewest, highest = settings.workers
    fewest = min(fewest, len(items))
    highest = len(items) if highest is None else min(highest, len(items))
    # One item a block, so that a row is there when it is made, and a retry repeats one item. One item a worker, so that
    # none waits for a worker while another one is free.
    results = (
        data.from_items(rows, override_num_blocks=len(rows))
        .map(
            _Actor,
            fn_constructor_args=(pickle.dumps(recipe), ledger, os.getcwd()),
            compute=data.ActorPoolStrategy(min_size=fewest, max_size=highest, max_tasks_in_flight_per_actor=1),
            **_resources(settings, ray.cluster_resources()),
        )
        .iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
    )
    seen = _Seen(log)
    done = set[int]()
    try:
        for batch in results:
            for packed in batch.column(_COLUMN).to_pylist():
                reply: _Reply = pickle.loads(packed)
                if isinstance(reply.row, Exception):
                    raise reply.row
                for text in reply.warnings:
                    warnings.warn(text, ToyModelWarning, stacklevel=2)
                if reply.number not in done:
                    done.add(reply.number)
                    yield WorkResult(ordered[reply.number], reply.row, seen.note(reply))
    finally:
        with suppress(ray.exceptions.RayError):
            retries, starts = ray.get(ledger.summary.remote(), timeout=10)
            log.retries += retries
            seen.note_starts(starts)
        ray.kill(ledger)


def _resources(settings: ClusterSettings, found: dict[str, float]) -> dict[str, Any]:
    """What a worker reserves, as keywords of `Dataset.map`."""
    kind = settings.kind or next((one for one in KINDS if found.get(one.upper(), 0) >= 1), "cpu")
    if kind == "gpu":
        return {"num_cpus": 1, "num_gpus": settings.each}
    return {"num_cpus": 1, "resources": {"TPU": settings.each}} if kind == "tpu" else {"num_cpus": 1}


class _Ledger:
    """How often each item was begun, and how that ended if its worker could say so."""

    def __init__(self) -> None:
        self._begun, self._reasons, self._retries = defaultdict[int, int](int), dict[int, str](), 0
        self._starts = defaultdict[str, int](int)

    def begin(self, number: int) -> tuple[int, str]:
        """(how often it was begun before, how the last time ended)."""
        before = self._begun[number]
        self._begun[number] += 1
        self._retries += 0 < before < MAX_DEATHS
        return before, self._reasons.get(number, "killed, or crashed: see the logs of Ray")

    def end(self, number: int, reason: str | None) -> None:
        """It has a row, or its worker is about to end for this reason."""
        if reason is None:
            self._begun.pop(number, None)
            self._reasons.pop(number, None)
        else:
            self._reasons[number] = reason

    def start(self, worker: str) -> None:
        """A worker starts, the first time or again."""
        self._starts[worker] += 1

    def summary(self) -> tuple[int, dict[str, int]]:
        """(retries of items, how often each worker started)."""
        return self._retries, dict(self._starts)


def _start_ledger(ray: Any) -> Any:
    """On the driver's machine: what ends the ledger ends the run anyway."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(_Ledger).options(num_cpus=0, scheduling_strategy=here).remote()


@dataclass(frozen=True)
class _Reply:
    """What comes back of an item. row: or what would fail every item. process: differs after a restart."""

    number: int
    row: dict[str, Any] | Exception
    worker: str
    process: int
    device: str
    about: dict[str, Any] | None
    loading_s: float
    busy_s: float
    warnings: tuple[str, ...]


class _Actor:
    """A worker."""

    def __init__(self, recipe: bytes, ledger: Any, folder: str) -> None:
        with suppress(OSError):  # relative paths are those of the driver, if they are paths here
            os.chdir(folder)
        self._ledger, self._warnings, self._failure = ledger, list[str](), None
        ledger.start.remote(_ray().get_runtime_context().get_actor_id())
        started = time.perf_counter()
        _keep_warnings(self._warnings)
        try:
            self._worker = pickle.loads(recipe)()
        except Vxl2Error as error:
            self._failure = error
        except Exception:
            self._failure = RuntimeError(traceback.format_exc())
        self._loading_s = time.perf_counter() - started

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        number, content = pickle.loads(row[_COLUMN])
        made = self._failure or self._answer(number, content)
        shown = tuple(self._warnings)
        self._warnings.clear()
        context = _ray().get_runtime_context()
        about = None if self._failure else self._worker.about
        identity = context.get_actor_id(), os.getpid(), _device(context)
        return {
            _COLUMN: pickle.dumps(
                _Reply(number, made, *identity, about, self._loading_s, time.perf_counter() - started, shown)
            )
        }

    def _answer(self, number: int, content: Any) -> dict[str, Any] | Exception:
        before, reason = _ray().get(self._ledger.begin.remote(number))
        if before >= MAX_DEATHS:
            row = death_row(reason, before)
        else:
            try:
                (row,) = self._worker.rows(iter([content]))
            except Vxl2Error as error:  # what would fail every item
                return error
            except Exception as error:  # the worker may be of no use any more: Ray starts another one
                traceback.print_exc()
                _ray().get(self._ledger.end.remote(number, f"{type(error).__name__}: {first_line(error)[:300]}"))
                os._exit(1)
        _ray().get(self._ledger.end.remote(number, None))
        return row


def _ray() -> Any:
    import ray

    return ray


def _device(context: Any) -> str:
    ids = {kind.lower(): ",".join(found) for kind, found in context.get_accelerator_ids().items() if found}
    names = [f"{kind} {found}" for kind, found in ids.items()] or ["cpu"]
    return f"{_ray().util.get_node_ip_address()}, {' '.join(names)}"


def _keep_warnings(kept: list[str]) -> None:
    """Put the warnings that users are to see into a list."""
    warnings.simplefilter("once", ToyModelWarning)
    show = warnings.showwarning

    def keep(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, ToyModelWarning):
            kept.append(str(message))
        else:
            show(message, category, *place, **more)

    warnings.showwarning = keep


class _Seen:
    """Writes replies into the log, under a number for each actor, counted from 0."""

    def __init__(self, log: FleetLog) -> None:
        self._log, self._names, self._processes = log, dict[str, str](), dict[str, int]()

    def note(self, reply: _Reply) -> str:
        """Count a reply's item, and return the name of its worker."""
        name = self._names.setdefault(reply.worker, str(len(self._names)))
        entry = self._log.worker(name)
        if self._processes.get(name) != reply.process:
            entry.loading_s += reply.loading_s
            self._processes[name] = reply.process
        entry.about, entry.device = reply.about, reply.device
        entry.items += 1
        entry.busy_s += reply.busy_s
        return name

    def note_starts(self, starts: dict[str, int]) -> None:
        """Count restarts, also those of processes that made no row."""
        for worker, count in starts.items():
            if worker in self._names:
                self._log.worker(self._names[worker]).restarts += count - 1
