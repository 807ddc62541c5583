"""Files that one process at a time writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vxl2_jax.errors import RequestError

try:
    import fcntl
except ImportError:  # Windows: two processes are then not kept apart
    fcntl = None


def lock(file: IO, path: Path) -> None:
    """Hold the file until it is closed. Raises RequestError if another process does."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RequestError(f"{path}: another process is writing it; wait for it, or choose another name") from error


@contextmanager
def opened(path: Path) -> Iterator[IO[str]]:
    """A text file to be read and added to, made if it is not there.

    Raises RequestError if it cannot be written or another process holds it.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8", newline="")
    except OSError as error:
        raise RequestError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    with file:
        lock(file, path)
        try:
            yield file
        except OSError as error:
            told = error.strerror or error
            raise RequestError(
                f"{path}: cannot be written ({told}); free some space, or choose another place"
            ) from error
