"""A kernel is tried before it is trusted: its self-test, once per machine and version.

A wrong kernel gives wrong answers, and one that hangs or crashes takes the program with it. So the self-test of a GPU kernel
runs in a process of its own with a time limit. A TPU belongs to one process: there it runs in this one, and a note on disk
tells the next process if it did not end. Verdicts are kept next to compiled programs (see `compile_cache`).

    python -m vxl2_jax.kernel_trial NAME DTYPE WIDTH CACHE_DTYPE [gradient]     # what the other process runs
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
from jax.typing import DTypeLike

import pallas_kernels
from pallas_kernels import attention
from pallas_kernels.attention import Kernel
from vxl2_jax import compile_cache, files, hardware
from vxl2_jax.errors import RESOURCE_EXHAUSTED

SECONDS = 300
"""Time limit of a self-test. Its programs compile in a fraction of it."""
_READY, _GRADIENT = "ready", "gradient"


def trial(
    kernel: Kernel,
    *,
    dtype: DTypeLike,
    width: int,
    cache_dtype: DTypeLike | None = None,
    gradient: bool = False,
    device: Any = None,
) -> str | None:
    """Try a kernel on the present device, unless that was done before.

    Args:
      kernel: from `attention.choose_kernel`.
      dtype, width, cache_dtype, gradient: see `attention.self_test`.
      device: the present one; default: `hardware.device()`.

    Returns:
      What is wrong with the kernel, in one line, or None.
    """
    device = hardware.device() if device is None else device
    arguments = kernel.name, jnp.dtype(dtype).name, width, jnp.dtype(dtype if cache_dtype is None else cache_dtype).name
    arguments += (_GRADIENT,) if gradient else ()
    record = None if kernel.interpret else _record(kernel, device, arguments)
    if record and (known := _read(record)) is not None:
        return known or None
    tried, verdict = False, None
    if device.platform in ("gpu", "cuda"):
        logging.getLogger("vxl2_jax").info("testing the %s kernel, once on this machine", kernel.name)
        tried, verdict = _in_another_process(arguments, device)
    if not tried or _lacks_memory(verdict):  # for another process there may be less of it than for this one
        verdict = _here(kernel, arguments, record)
    if record and _lacks_memory(verdict):  # nothing is known of the kernel
        record.unlink(missing_ok=True)
    elif record:
        _write(record, {"verdict": verdict, "kernel": kernel.name, "device": device.device_kind})
    return verdict


def _lacks_memory(verdict: str | None) -> bool:
    return verdict is not None and RESOURCE_EXHAUSTED in verdict


def _record(kernel: Kernel, device: Any, arguments: tuple[Any, ...]) -> Path | None:
    """The file of a verdict: one for every device, version of JAX and of its plug-in, kernel, and source of the kernels."""
    folder = compile_cache.kept("kernels")
    if folder is None:
        return None
    sources = sorted(Path(pallas_kernels.__file__).parent.rglob("*.py"))
    version = getattr(getattr(device, "client", None), "platform_version", "")
    digest = hashlib.sha256(
        repr((device.device_kind, version, jax.__version__, jaxlib.__version__, arguments, kernel)).encode()
    )
    for source in sources:
        digest.update(source.read_bytes())
    return folder / f"{kernel.name}-{digest.hexdigest()[:16]}.json"


def _read(record: Path) -> str | None:
    """A verdict that is known: "" for a kernel that agrees. None where there is none, or a test is going on."""
    with suppress(OSError, ValueError, TypeError, AttributeError):  # no file, or one that is not ours
        found = json.loads(record.read_text())
        if (process := found.get("process")) is None:
            return str(found["verdict"] or "")
        if not files.is_running(int(process)):
            return f"an earlier self-test did not end, or ended its process; remove {record} to try it again"
    return None


def _write(record: Path, about: dict[str, Any]) -> None:
    """Atomically; where it cannot be written, the kernel is tried again next time."""
    part = record.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):
        part.write_text(json.dumps(about))
        os.replace(part, record)


def _here(kernel: Kernel, arguments: tuple[Any, ...], record: Path | None) -> str | None:
    """The self-test in this process. If it never ends, the next process finds the note."""
    if record:
        _write(record, {"process": os.getpid()})
    what = f"the self-test of the {kernel.name} kernel has not ended after {SECONDS} s: stop this program"
    then = "the next one will do without this kernel" if record else "start it again with --attention reference"
    watch = threading.Timer(SECONDS, logging.getLogger("vxl2_jax").warning, (f"{what}; {then}",))
    watch.daemon = True
    watch.start()
    try:
        _, dtype, width, cache_dtype, *what = arguments
        return attention.self_test(kernel, dtype=dtype, width=width, cache_dtype=cache_dtype, gradient=bool(what))
    except BaseException:  # interrupted from the keyboard: no verdict
        if record:
            record.unlink(missing_ok=True)
        raise
    finally:
        watch.cancel()


def _command(arguments: tuple[Any, ...]) -> list[str]:
    return [sys.executable, "-m", __name__, *map(str, arguments)]


def _in_another_process(arguments: tuple[Any, ...], device: Any) -> tuple[bool, str | None]:
    """(whether the process could use the device, what is wrong with the kernel)."""
    # This process has taken most of the device's memory: what is left must do for a small problem.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if (number := getattr(device, "local_hardware_id", None)) is not None:
        environment["JAX_CUDA_VISIBLE_DEVICES"] = str(number)
    try:
        done = subprocess.run(
            _command(arguments),
            capture_output=True,
            text=True,
            env=environment,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        ready = _READY in (printed if isinstance(printed, str) else printed.decode(errors="replace"))
        return ready, f"it did not end within {SECONDS} s" if ready else None
    except OSError:
        return False, None
    lines = done.stdout.splitlines()
    if _READY not in lines:
        return False, None
    with suppress(ValueError, IndexError, TypeError, KeyError):
        return True, json.loads(lines[-1])["verdict"]
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return True, f"it ended its process with exit code {done.returncode} ({last:.200})"


def main(name: str, dtype: str, width: str, cache_dtype: str, *what: str) -> None:
    """Test a kernel on the device that is here, and print the verdict as JSON on the last line."""
    with hardware.numerics(dtype):
        device = hardware.device()
        choice = attention.choose_kernel(name, dtype=dtype, width=int(width), cache_dtype=cache_dtype, device=device)
        jnp.zeros(1).block_until_ready()
        print(_READY, flush=True)
        asked = {"dtype": dtype, "width": int(width), "cache_dtype": cache_dtype, "gradient": _GRADIENT in what}
        verdict = attention.self_test(choice.kernel, **asked)
    print(json.dumps({"verdict": verdict}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
