"""Worker processes: JSON requests, one a line, on standard input; JSON replies, one a line, on standard output.

Below: what the worker itself calls, to serve tasks and to measure its runs and memory. Needs neither JAX nor PyTorch.
A request's "task" names what to do (`serve`). {"refused": reason} is the reply of a worker that cannot do it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

_ROOT = Path(__file__).resolve().parents[2]
JAX, TORCH = "jax_worker", "torch_worker"
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Worker:
    """A running worker. It is killed after `limit_s` seconds, and at the end of the `with` block.

    Args:
      module: JAX, TORCH or the path of a file.
      python: the interpreter; default: the one that runs this.
      env: variables added to the environment.

    Raises:
      OSError: the interpreter does not run.
    """

    def __init__(
        self, module: str | Path, *, limit_s: float, python: str | None = None, env: Mapping[str, str] | None = None
    ):
        what = [str(module)] if isinstance(module, Path) else ["-m", f"{__package__}.{module}"]
        command, environment = [python or sys.executable, *what], {**os.environ, **(env or {})}
        self._stderr: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in __exit__)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._stderr}
        try:
            self._child = subprocess.Popen(command, **pipes, text=True, cwd=_ROOT, env=environment)
        except OSError as error:
            self._stderr.close()
            raise OSError(f"{command[0]} does not run ({error.strerror})") from error
        self._limit_s, self._timer = limit_s, threading.Timer(max(limit_s, 1.0), self._child.kill)
        self._timer.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def send(self, request: dict) -> None:
        """Send a request. If the worker has ended, `replies` ends and `failure` says why."""
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()

    def close(self) -> None:
        """No more requests."""
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()

    def replies(self) -> Iterator[dict]:
        """Replies from here on, until the worker ends. Other lines are skipped."""
        for line in self._child.stdout:
            if line.startswith("{") and line.endswith("}\n"):
                yield json.loads(line)

    def failure(self) -> str:
        """Wait for the end; "" for exit code 0, else why it ended."""
        code = self._child.wait()
        if not code:
            return ""
        if not self._timer.is_alive():
            return f"not done within {self._limit_s:.0f} s"
        self._stderr.seek(0)
        last = self._stderr.read().strip().splitlines()[-1:] or ["no message"]
        return f"the worker ended with code {code}: {last[0][:300]}"


def run(
    module: str | Path,
    request: dict,
    *,
    limit_s: float,
    python: str | None = None,
    env: Mapping[str, str] | None = None,
    on_reply: Callable[[dict], None] = lambda _: None,
) -> tuple[list[dict], str]:
    """Run a worker on one request. Returns its replies, and why it failed or refused ("" where it did neither)."""
    try:
        worker = Worker(module, limit_s=limit_s, python=python, env=env)
    except OSError as error:
        return [], str(error)
    found = []
    with worker:
        worker.send(request)
        worker.close()
        for line in worker.replies():
            found.append(line)
            on_reply(line)
        return found, refusal(found) or worker.failure()


def refusal(replies: Iterable[dict]) -> str:
    """The reason of a worker's refusal, or ""."""
    return next((line["refused"] for line in replies if "refused" in line), "")


def reply(**line: object) -> None:
    """In the worker: reply with one line."""
    print(json.dumps(line), flush=True)


def serve(tasks: Mapping[str, Callable[[dict, Iterator[dict]], None]]) -> None:
    """In the worker: run the task of the first request, given that request and an iterator over the others."""
    requests = (json.loads(line) for line in sys.stdin)
    first = next(requests)
    tasks[first["task"]](first, requests)


def limit_cores(threads: int | None) -> int:
    """Let this process run on `threads` cores only (None: all), before a library counts them. Returns their number.

    Only Linux has such a limit. JAX's compilation cache does not distinguish programs by the number of cores: each
    number gets a folder of its own.
    """
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    if cache := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(cache, f"{len(cores)}-cores")
    return len(cores)


def reset_peak() -> int:
    """Return freed memory to the system, reset the peak of resident memory (on Linux only), return resident bytes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
    return _status("VmRSS") or peak()


def peak() -> int:
    """The peak of resident bytes since `reset_peak`."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return _status("VmHWM") or usage  # getrusage may report the peak of the program that started this one


def run_repeatedly(run: Callable[[], Any], requests: Iterable[dict], **about: Any) -> Any:
    """Reply with the memory of a first run, then with the seconds of one more run per request. Returns the last result.

    Whatever was compiled, and has run once on something small, is part of `loaded_bytes`.
    """
    loaded = reset_peak()
    result = run()
    reply(loaded_bytes=loaded, peak_bytes=peak(), **about)
    for _ in requests:
        del result
        start, cpu_start = time.perf_counter(), time.process_time()
        result = run()
        reply(seconds=time.perf_counter() - start, core_seconds=time.process_time() - cpu_start)
    return result


def _status(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
