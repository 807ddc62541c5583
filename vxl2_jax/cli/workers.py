"""Arguments of commands that work on many videos, and the fleet that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from vxl2_jax import tensor_parallel
from vxl2_jax.api import Model
from vxl2_jax.cli import configure_jax, options
from vxl2_jax.fleet import here, places, pool
from vxl2_jax.fleet.work import Fleet
from vxl2_jax.options import RANGES

_MODEL = ("model", "dtype", "weights", "mesh", "attention")


def add(parser: argparse.ArgumentParser) -> None:
    """Add --workers."""
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="processes that work on the videos, each on a device of its own, or on a share of the CPU cores; auto: one for "
        "each device. One that dies is started again (default: this process alone)",
    )


def _workers(text: str) -> str | int:
    return text if text == "auto" else RANGES["workers"].parse("workers", text)


def fleet_of(args: argparse.Namespace) -> Fleet:
    """The fleet that the command line asks for. It looks for its devices when it starts."""
    if args.workers is None:
        return here.run
    each = tensor_parallel.parse(args.mesh).devices
    return partial(pool.run, places=partial(places.places, None if args.workers == "auto" else args.workers, each))


def loader(args: argparse.Namespace) -> Callable[[], Model]:
    """What loads the model in a worker. In this process, it shows its progress."""
    if args.workers is None:
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
