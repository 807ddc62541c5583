"""Files that only one process writes at a time."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vxl2_jax.errors import RequestError

try:
    import fcntl
except ImportError:  # Windows: nothing stops a second process there
    fcntl = None


def lock(file: IO, path: Path) -> None:
    """Lock the file until it is closed. Raises RequestError if another process holds the lock."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RequestError(f"{path}: another process is writing it; wait for it, or choose another path") from error


@contextmanager
def open_locked(path: Path) -> Generator[IO[str], None, None]:
    """Open a text file for reading and appending, created if missing, and lock it.

    Raises RequestError if it cannot be written or another process holds the lock.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8", newline="")
    except OSError as error:
        raise RequestError(f"{path}: cannot be written ({error.strerror}); choose another path") from error
    with file:
        lock(file, path)
        try:
            yield file
        except OSError as error:
            reason = error.strerror or error
            raise RequestError(
                f"{path}: cannot be written ({reason}); free some disk space, or choose another path"
            ) from error
