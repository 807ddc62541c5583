"""Worker processes: JSON requests, one a line, on standard input; JSON replies, one a line, on standard output.

A request's "task" names what to do (`serve`). {"refused": reason} is the reply of a worker that cannot do it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

_ROOT = Path(__file__).resolve().parents[2]
JAX, TORCH = "jax_worker", "torch_worker"


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
