"""Files that only one process writes at a time."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from vxl2_jax.errors import BusyError, RequestError
from vxl2_jax.files import ROWS

try:
    import fcntl
except ImportError:  # Windows: nothing stops a second process there
    fcntl = None


def open_for_writing(path: Path) -> BinaryIO:
    """Open a file of our own for reading and writing, created if missing.

    Raises OSError, also for pipes, devices, links, and files that have other names as well.
    """
    return os.fdopen(_open_regular(path, follow_links=False), "r+b")


def _open_regular(path: Path, follow_links: bool) -> int:
    """The number of a regular file that is open for reading and writing. Raises OSError, also for pipes and devices."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    number = os.open(path, flags | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0)), 0o666)
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode) or not (follow_links or status.st_nlink == 1):
        os.close(number)
        raise OSError(errno.EINVAL, "not a regular file, or a link")
    return number


def is_at(file: IO, path: Path) -> bool:
    """Whether an open file is still the one at this path: between opening and locking, its writer may have renamed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _is_there(file: IO, path: Path) -> bool:
    """Whether an open file is still the one that a path leads to, also by a link."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def lock(file: IO, path: Path) -> None:
    """Lock the file until it is closed. Raises BusyError if another process holds the lock."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BusyError(f"{path}: another process is writing it; wait for it, or choose another path") from error


@contextmanager
def open_locked(path: Path) -> Generator[IO[str], None, None]:
    """Open a text file for reading and appending, created if missing, and lock it. After an error, one that was made and is still
    empty goes again.

    Raises RequestError if it cannot be written or another process holds the lock.
    """
    try:
        is_new = not os.path.lexists(path)
        file = os.fdopen(_open_regular(path, follow_links=True), "r+", encoding="utf-8", newline="\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"{path}: cannot be written ({reason}); choose another path") from error
    try:
        with file:  # closing writes what is left in the buffer
            lock(file, path)
            if not _is_there(file, path):
                raise BusyError(f"{path}: another process has just removed it; run the command again")
            if (size := os.fstat(file.fileno()).st_size) > ROWS.max_bytes:
                ROWS.fail(path, f"{size:,} bytes, which is more than the limit of {ROWS.max_bytes:,}")
            try:
                yield file
            except BaseException:
                with suppress(OSError):  # it was removed, or cannot be: the error counts
                    file.flush()
                    if is_new and not os.fstat(file.fileno()).st_size and _is_there(file, path):
                        path.unlink()
                raise
    except OSError as error:
        reason = error.strerror or error
        raise RequestError(
            f"{path}: cannot be written ({reason}); free some disk space, or choose another path"
        ) from error
