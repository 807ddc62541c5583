"""A script in a process of its own: JSON requests, a line each, on its standard input, JSON lines on its output."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

_ROOT = Path(__file__).resolve().parents[2]
RETURN_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
"""Environment in which glibc gives blocks of that many bytes and more back to the system as soon as they are free."""


class Script:
    """A script that runs: it is killed after `limit_s` seconds, and when the `with` around it ends.

    script: the name of a module of this folder, or the path of a file; python: the interpreter, by default the one that
    runs this.
    Raises OSError where the interpreter does not run.
    """

    def __init__(self, script: str | Path, *, limit_s: float, python: str | None = None):
        module = ["-m", f"{__package__}.{script}"]
        command = [python or sys.executable, *([str(script)] if isinstance(script, Path) else module)]
        self._complaints: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the script)
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, text=True, cwd=_ROOT
            )
        except OSError as error:
            self._complaints.close()
            raise OSError(f"{command[0]} does not run ({error.strerror})") from error
        self._limit_s, self._late = limit_s, threading.Timer(max(limit_s, 1.0), self._child.kill)
        self._late.start()

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self._late.cancel()
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._complaints):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def ask(self, request: object) -> None:
        """Hand a request over. Of a script that has ended, `lines` says so."""
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()

    def no_more(self) -> None:
        """Nothing else will be asked."""
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()

    def lines(self) -> Iterator[dict]:
        """What it says from here on, until it ends."""
        for line in self._child.stdout:
            if line.startswith("{") and line.endswith("}\n"):
                yield json.loads(line)

    def ended(self) -> str:
        """Wait for the end: "" if it came by itself with code 0, else why."""
        code = self._child.wait()
        if not code:
            return ""
        if not self._late.is_alive():
            return f"not done within {self._limit_s:.0f} s"
        self._complaints.seek(0)
        last = self._complaints.read().strip().splitlines()[-1:] or ["no word"]
        return f"its process ended with code {code}: {last[0][:300]}"


def run(
    script: str | Path,
    request: dict,
    *,
    limit_s: float,
    python: str | None = None,
    heard: Callable[[dict], None] | None = None,
) -> tuple[list[dict], str]:
    """Run a script on one request until it ends, at most `limit_s` seconds.

    heard: called with every line as it comes. Returns the lines, and why there are no more where the process did not
    end by itself with code 0 ("" where it did).
    """
    try:
        child = Script(script, limit_s=limit_s, python=python)
    except OSError as error:
        return [], str(error)
    found = []
    with child:
        child.ask(request)
        child.no_more()
        for line in child.lines():
            found.append(line)
            if heard:
                heard(line)
        return found, child.ended()


def say(**line: object) -> None:
    """What the process itself prints with: one line, at once."""
    print(json.dumps(line), flush=True)


def asked() -> Iterator[dict]:
    """What the process itself is asked, one request after another, until there are no more."""
    for line in sys.stdin:
        yield json.loads(line)
