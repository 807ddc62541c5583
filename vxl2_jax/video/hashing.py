"""What identifies a video: the hash of its content, and until that is known, a fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Generator
from pathlib import Path

from vxl2_jax import files
from vxl2_jax.errors import VideoError
from vxl2_jax.video.images import folder_images

_BLOCK = 2**20
_EDGE = 2**20
"""Bytes at the beginning and at the end of a file that its fingerprint includes."""


def content_hash(path: str | Path, stopped: Callable[[], bool] = bool) -> str:
    """The SHA-256 of a file's content, or of the names and contents of a folder's images, in hexadecimal.

    `stopped` is called after each MiB; the hash is meaningless if it returns True.

    Raises VideoError if the path does not exist or cannot be read.
    """
    path = Path(path)
    with check_readable(path):
        if not path.is_dir():
            return _file_hash(path, stopped)
        lines = (f"{_file_hash(image, stopped)} {image.name}\n" for image in folder_images(path))
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


class BackgroundHash:
    """`content_hash` in a thread, next to other reading of the file. Calling it waits for the hash.

    The call raises VideoError as `content_hash`.
    """

    def __init__(self, path: str | Path) -> None:
        """Start the thread."""
        self._found = ""
        self._failed: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(path,), name="vxl2-hash", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the hash is not wanted any more."""
        self._stopped.set()
        self._thread.join()

    def __call__(self) -> str:
        """The hash, once it is known."""
        self._thread.join()
        if self._failed is not None:
            raise self._failed
        return self._found

    def _work(self, path: str | Path) -> None:
        try:
            self._found = content_hash(path, self._stopped.is_set)
        except BaseException as error:  # raised where the hash is needed
            self._failed = error


def fingerprint(path: str | Path) -> str:
    """Hash of a file's size, time of change, and first and last MiB; of a folder, of the names, sizes and times of its images.

    It tells an unfinished memory that its video is the same. Raises VideoError if the path cannot be read.
    """
    path = Path(path)
    with check_readable(path):
        digest = hashlib.sha256()
        for file in folder_images(path) if path.is_dir() else [path]:
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        if not path.is_dir():
            with files.open_regular(path, files.VIDEO) as data:
                digest.update(data.read(_EDGE))
                data.seek(max(0, path.stat().st_size - _EDGE))
                digest.update(data.read(_EDGE))
        return digest.hexdigest()


@contextlib.contextmanager
def check_readable(path: Path) -> Generator[None, None, None]:
    """Raise VideoError for a path that cannot be read, instead of a decoder's own error."""
    try:
        if files.is_address(path):
            address = str(path).replace(":/", "://", 1)
            raise VideoError(
                f"{address}: an address, not a file; download it, or give --allow-url to vxl2 ask or watch"
            )
        if not path.exists():
            raise VideoError(f"{path}: no such file; give the path of a video, an image or a folder of images")
        if not (path.is_file() or path.is_dir()):
            raise VideoError(f"{path}: a device or pipe; save the video to a file first")
        if path.is_file() and path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty; fetch or copy the video again")
        yield
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _file_hash(path: Path, stopped: Callable[[], bool]) -> str:
    digest = hashlib.sha256()
    with files.open_regular(path, files.VIDEO) as file:
        while not stopped() and (data := file.read(_BLOCK)):
            digest.update(data)
    return digest.hexdigest()
