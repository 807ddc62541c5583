"""Several hosts that run one model together: starting them, and what all of them must know.

Every host runs the same program on the same arguments. An array on a mesh has a part on each host; what a host needs as a whole is
replicated first. The first host writes files and prints.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vxl2_jax.errors import RequestError, first_line, shown

AUTO = "auto"
_Result = TypeVar("_Result")
_SECONDS = 30
"""After so long without a sign of life a host counts as lost."""


def start(text: str) -> None:
    """Connect the hosts. Call it before anything else asks JAX for devices.

    Args:
      text: "auto" on a TPU slice and under SLURM or MPI; elsewhere "ADDRESS:PORT,COUNT,NUMBER" with the address of the first
        host, the number of hosts and that of this one, from 0.

    Raises:
      RequestError: the text is neither, or the hosts do not find each other.
    """
    found = re.fullmatch(r"([^,\s]+:\d+),(\d+),(\d+)", text)
    if text != AUTO and not (found and int(found[3]) < int(found[2])):
        raise RequestError(f"hosts must be {AUTO} or ADDRESS:PORT,COUNT,NUMBER with NUMBER from 0, not {shown(text)}")
    given: dict[str, Any] = {}
    if found:
        given = {"coordinator_address": found[1], "num_processes": int(found[2]), "process_id": int(found[3])}
    try:
        # On CPUs, which simulate accelerators in tests.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise RequestError(
            f"hosts {text}: cannot connect ({first_line(error)}); start the same command on all hosts"
        ) from error


def several() -> bool:
    """Whether there are several hosts."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this host writes files and prints."""
    return jax.process_index() == 0


def is_lost(message: str) -> bool:
    """Whether the message of an error of JAX says that another host does not answer."""
    return any(
        words in message for words in ("Gloo", "NCCL", "ncclRemoteError", "heartbeat", "UNAVAILABLE", "coordination")
    )


def on_every_host(tree: Any) -> Any:
    """The arrays of a tree, such that every host can copy them as a whole: those with parts on other hosts are replicated."""

    def replicated(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        assert isinstance(leaf.sharding, NamedSharding)
        return jax.jit(_same, out_shardings=NamedSharding(leaf.sharding.mesh, P()))(leaf)

    return jax.tree.map(replicated, tree)


def _same(x: jax.Array) -> jax.Array:
    return x


def agreed(number: int) -> int:
    """The number that the first host has."""
    if not several():
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int64(number)))


def on_first(action: Callable[[], _Result]) -> _Result | None:
    """What an action returns on the first host, which alone does it; None on others, after it is done.

    Raises what the action raises, and RequestError on the others then.
    """
    try:
        result = action() if is_first() else None
    except BaseException:
        agreed(0)
        raise
    if not agreed(1):
        raise RequestError("the first host has stopped: see its message")
    return result
