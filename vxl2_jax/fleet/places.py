"""Where the workers of a machine compute: each on devices of its own, or on a share of the CPU cores.

What a worker may see is decided by environment variables, which the libraries of NVIDIA and of TPUs read when JAX starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vxl2_jax.errors import RequestError

CARDS, CHIPS = "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"
_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
"""By number of chips, their topology within a host, as TPU_CHIPS_PER_PROCESS_BOUNDS takes it."""
_PROBE = (
    "import json, jax; from vxl2_jax.hardware import device; d = device(); "
    "print(json.dumps([d.platform, len(jax.local_devices(backend=d.platform))]))"
)


@dataclass(frozen=True)
class Place:
    """Where a worker computes.

    Attributes:
      name: for people, such as "gpu 3".
      environment: variables of its process.
      device: index among the devices that JAX shows there; of several simulated devices, only this one is used.
      cores: the CPU cores that it runs on; empty: all.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    device: int = 0
    cores: tuple[int, ...] = ()


def devices_here() -> tuple[str, int]:
    """(platform, number of devices) of this machine, which a process of its own finds out.

    A process that has looked for devices keeps them, so this one must not. Raises RequestError as `hardware.device`.
    """
    code = f"from vxl2_jax.errors import Vxl2Error\ntry:\n    {_PROBE}\nexcept Vxl2Error as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_environment())
    line = done.stdout.strip().splitlines()[-1:] or [*done.stderr.strip().splitlines()[-1:], "no message"][:1]
    try:
        platform, count = json.loads(line[0])
    except ValueError as error:
        raise RequestError(f"the devices of this machine cannot be listed: {line[0][:500]}") from error
    return str(platform), int(count)


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that is to import what this one imports."""
    path = os.pathsep.join(part or os.getcwd() for part in sys.path)
    return {**os.environ, "PYTHONPATH": path, **(more or {})}


def places(
    workers: int | None,
    each: int = 1,
    *,
    found: tuple[str, int] | None = None,
    environment: Mapping[str, str] = os.environ,
    cores: Sequence[int] | None = None,
) -> list[Place]:
    """A place for each worker.

    Args:
      workers: how many; None: as many as this machine has devices.
      each: devices of one worker (those of its mesh).
      found: (platform, number of devices); None: what `devices_here` finds.
      environment: the variables that may narrow down the devices already.
      cores: the CPU cores to divide; None: those of this process.

    Raises RequestError if there are fewer accelerators than the workers need.
    """
    platform, count = found or devices_here()
    if platform == "cpu":
        return _on_cpu(workers or max(count // each, 1), each, count, cores)
    ids = [part for part in environment.get(CHIPS if platform == "tpu" else CARDS, "").split(",") if part]
    ids = ids or [str(number) for number in range(count)]
    workers = workers or len(ids) // each
    if workers < 1 or workers * each > len(ids):
        raise RequestError(
            f"{workers or 1} workers with {each} {platform} devices each: this machine has {len(ids)}; take fewer workers"
        )
    shares = [ids[number * each : (number + 1) * each] for number in range(workers)]
    if platform != "tpu":
        return [Place(f"{platform} {','.join(share)}", {CARDS: ",".join(share)}) for share in shares]
    if each not in _BOUNDS:
        raise RequestError(f"a worker takes 1, 2, 4 or 8 chips of a TPU, not {each}")
    bounds = {"TPU_CHIPS_PER_PROCESS_BOUNDS": _BOUNDS[each], "TPU_PROCESS_BOUNDS": "1,1,1"}
    return [Place(f"tpu {','.join(share)}", {CHIPS: ",".join(share), **bounds}) for share in shares]


def _on_cpu(workers: int, each: int, count: int, cores: Sequence[int] | None) -> list[Place]:
    """Shares of the cores. Of simulated devices each worker also has its own, unless it needs several for its mesh."""
    if cores is None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ()
    found = []
    for number in range(workers):
        share = tuple(cores[number % len(cores) :: workers]) if cores else ()
        device = number % count if each == 1 else 0
        name = f"cpu {device}" if count > 1 and each == 1 else "cpu"
        found.append(Place(f"{name}, cores {','.join(map(str, share))}" if share else name, {}, device, share))
    return found
