"""Arguments of commands that work on many videos, and the fleet that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from vxl2_jax import tensor_parallel
from vxl2_jax.api import Model
from vxl2_jax.cli import configure_jax, options
from vxl2_jax.errors import RequestError
from vxl2_jax.fleet import cluster, here, places, pool
from vxl2_jax.fleet.cluster import ClusterSettings
from vxl2_jax.fleet.work import Fleet
from vxl2_jax.options import RANGES
from vxl2_jax.storage import shared

_MODEL = ("model", "dtype", "weights", "mesh", "attention")


def add(parser: argparse.ArgumentParser) -> None:
    """Add --workers, --ray and --worker-device."""
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="processes that work on the videos, each on a device of its own, or on a share of the CPU cores; auto: one for "
        "each device; with --ray also MIN:MAX. One that dies is started again (default: this process alone; with --ray auto)",
    )
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="workers on a Ray cluster (extra `ray`), of which files have the same paths everywhere; without ADDRESS that of "
        "RAY_ADDRESS, or of this machine, or one that is started for this command",
    )
    group.add_argument(
        "--worker-device",
        choices=cluster.KINDS,
        help="what a worker on a Ray cluster reserves (default: GPUs if the cluster has some now, else TPU chips, else a core)",
    )


def add_memories(parser: argparse.ArgumentParser) -> None:
    """Add --memories."""
    parser.add_argument(
        "--memories",
        type=shared.location,
        metavar="DIR",
        help="keep the memories of the videos in this folder, or at an address such as s3://bucket/folder (extra `remote`), and "
        "ask one that is there without watching again; `vxl2 memories DIR` lists them",
    )


def check_memories(args: argparse.Namespace) -> None:
    """Raise RequestError, before anything is loaded or written, if the folder of --memories cannot be made or reached."""
    if args.memories is not None:
        shared.open_folder(args.memories)


def _workers(text: str) -> str | int | tuple[int, int]:
    if text == "auto":
        return text
    bounds = tuple(RANGES["workers"].parse("workers", part) for part in text.split(":"))
    if len(bounds) == 1:
        return bounds[0]
    if len(bounds) > 2 or bounds[0] > bounds[1]:
        raise RequestError(f"workers must be a number, auto, or MIN:MAX, not {text!r:.40}")
    return bounds


def fleet_of(args: argparse.Namespace) -> Fleet:
    """The fleet that the command line asks for. Raises RequestError if this machine lacks devices for it."""
    each = tensor_parallel.parse(args.mesh).devices
    if args.ray is not None:
        bounds = (1, None) if args.workers in (None, "auto") else args.workers
        bounds = (bounds, bounds) if isinstance(bounds, int) else bounds
        return partial(cluster.run, settings=ClusterSettings(args.ray, bounds, each, args.worker_device))
    if isinstance(args.workers, tuple) or args.worker_device:
        raise RequestError("MIN:MAX workers and --worker-device are for a Ray cluster: add --ray, or remove them")
    if args.workers is None:
        return here.run
    return partial(pool.run, places=places.places(None if args.workers == "auto" else args.workers, each))


def loader(args: argparse.Namespace) -> Callable[[], Model]:
    """What loads the model in a worker. In this process, it shows its progress."""
    if args.workers is None and args.ray is None:
        return partial(options.load_model, args)
    chosen = {name: getattr(args, name) for name in _MODEL}
    return partial(_load, argparse.Namespace(**chosen, quiet=True, verbose=False))


def _load(args: argparse.Namespace) -> Model:
    """Load the model in a process that no command was started in."""
    configure_jax()
    return options.load_model(args)


def summary(did: dict[str, Any]) -> str:
    """One line about what a fleet did."""
    workers = did["workers"]
    hours = f"{3600 * did['videos'] / did['wall_s']:,.0f}" if did["wall_s"] else "0"
    total = max(len(workers) * did["wall_s"], 1e-9)
    idle = 100 * sum(one["idle_s"] for one in workers.values()) / total
    restarts = sum(one["restarts"] for one in workers.values())
    return (
        f"{len(workers)} workers, {did['videos']:,} videos in {did['wall_s']:,.0f} s, {hours} an hour; "
        f"idle {idle:.0f} %, {restarts} restarts, {did['retries']} retries"
    )
