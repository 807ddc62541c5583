"""A script in a process of its own: one JSON request on its standard input, JSON lines as it goes on its output."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

RETURN_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
"""Environment in which glibc gives blocks of that many bytes and more back to the system as soon as they are free."""


def run(
    script: str | Path, request: dict, *, limit_s: float, python: str | None = None,
    heard: Callable[[dict], None] | None = None,
) -> tuple[list[dict], str]:
    """Run a script (of this folder, unless it is a whole path) until it ends, at most `limit_s` seconds.

    python: the interpreter, by default the one that runs this; heard: called with every line as it comes. Returns
    the lines, and why there are no more where the process did not end by itself with code 0 ("" where it did).
    """
    command, found = [python or sys.executable, str(Path(__file__).parent / script)], []
    with tempfile.TemporaryFile("w+", errors="replace") as complaints:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True
            )
        except OSError as error:
            return [], f"{command[0]} does not run ({error.strerror})"
        late = threading.Timer(max(limit_s, 1.0), child.kill)
        late.start()
        try:
            _hand_over(child, request)
            for line in child.stdout:
                if line.startswith("{") and line.endswith("}\n"):
                    found.append(json.loads(line))
                    if heard:
                        heard(found[-1])
            code = child.wait()
        finally:
            on_time = late.is_alive()
            late.cancel()
            child.kill()
            child.wait()
            child.stdout.close()
        if not code:
            return found, ""
        if not on_time:
            return found, f"not done within {limit_s:.0f} s"
        complaints.seek(0)
        last = complaints.read().strip().splitlines()[-1:] or ["no word"]
        return found, f"its process ended with code {code}: {last[0][:300]}"


def _hand_over(child: subprocess.Popen, request: dict) -> None:
    """A process that has ended before it could listen says why on its error output."""
    try:
        with child.stdin as pipe:
            json.dump(request, pipe)
    except BrokenPipeError:
        pass


def say(**line: object) -> None:
    """What the process itself prints with: one line, at once."""
    print(json.dumps(line), flush=True)
