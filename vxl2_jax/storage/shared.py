"""A folder of memories at an address, such as s3://bucket/memories, through fsspec.

A memory is written in a folder of this machine, where an unfinished one resumes, and put to the address when it is complete, as a
whole or not at all. One that is there is fetched before it is asked. The copies here go again, so that disks of workers do not
fill up.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vxl2_jax import compile_cache, files
from vxl2_jax.errors import RequestError, Vxl2Error, first_line, shown

_BLOCK = 16 * 2**20
_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss"}
"""Protocols of stores that have buckets, and folders only as beginnings of names. A bucket is never made."""
_COPY = re.compile(r"\..*\.([0-9]+)\.fetched")
"""What a fetch writes, with the number of its process."""


@dataclass(frozen=True)
class SharedFolder:
    """A folder at an address.

    Attributes:
      url: as it was given.
      system: the fsspec file system.
      root: the folder's name there.
      local: where its memories are on this machine while they are written or opened.
    """

    url: str
    system: Any
    root: str
    local: Path

    def fetch(self, path: Path, name: str | None = None) -> None:
        """Copy a memory to `path`, a file of `local`, if it is at the address and not here. name: of it, if not that of `path`.

        Raises RequestError if it cannot be read, or does not fit on the disk.
        """
        remote = self._at(name or path.name)
        with self._explained("read"):
            if path.exists() or not self.system.exists(remote):
                return
            copy = path.with_name(f".{path.name}.{os.getpid()}.fetched")
            try:
                files.check_disk_space(self.local, self.system.size(remote))
                self.system.get_file(remote, str(copy))
                os.replace(copy, path)
            finally:
                copy.unlink(missing_ok=True)

    def settle(self, path: Path) -> None:
        """Put a complete memory to the address, unless it is there, and remove it here; who has it open may still read it.

        Raises RequestError if it cannot be written. It stays here then, and is put the next time it is needed.
        """
        remote = self._at(path.name)
        with self._explained("written"):
            if not self.system.exists(remote):
                with self.system.transaction, path.open("rb") as file, self.system.open(remote, "wb") as there:
                    shutil.copyfileobj(file, there, _BLOCK)
        path.unlink(missing_ok=True)

    def names(self) -> list[tuple[str, int]]:
        """(name, bytes) of its files, by name. Raises RequestError if it cannot be listed."""
        with self._explained("listed"):
            try:
                found = self.system.ls(self.root, detail=True)
            except FileNotFoundError:
                if not self.has_buckets or not self.system.exists(self.root.strip("/").split("/")[0]):
                    raise
                found = []
        return sorted((Path(one["name"]).name, one["size"]) for one in found if one["type"] == "file")

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of a file. Raises RequestError if they cannot be read."""
        with self._explained("read"):
            return self.system.cat_file(self._at(name), start=start, end=stop)

    def remove(self, name: str) -> None:
        """Remove a file. Raises RequestError if that is not possible."""
        with self._explained("changed"):
            self.system.rm_file(self._at(name))

    @property
    def has_buckets(self) -> bool:
        """Whether an empty folder is none there."""
        names = self.system.protocol
        return bool(_BUCKETS & {*((names,) if isinstance(names, str) else names)})

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextmanager
    def _explained(self, what: str) -> Generator[None, None, None]:
        """What file systems raise, of which each has its own, as one line."""
        try:
            yield
        except Vxl2Error:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RequestError(f"{self.local}: {error.strerror}; free some space on that disk") from error
            reason = "not found" if isinstance(error, FileNotFoundError) else first_line(error)
            raise RequestError(
                f"{self.url}: cannot be {what} ({reason}); check the address, and that you may do so"
            ) from error


def location(text: str | os.PathLike) -> Path | str:
    """A folder that a user gave: a path, also for a file:// address, or another address as it is. Raises RequestError."""
    if not isinstance(text, str) or not re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE):
        return files.check_path(text, "a folder of memories")
    parts = urlsplit(text)
    if parts.scheme.lower() not in ("file", "local"):
        return text
    if parts.netloc not in ("", "localhost"):
        raise RequestError(f"{shown(text)}: a file of another machine; write file:///FOLDER")
    return files.check_path(url2pathname(parts.path), "a folder of memories")


def open_folder(where: str | os.PathLike, create: bool = True) -> Path | SharedFolder:
    """The folder at a path or an address. create: make it if it is missing.

    Raises RequestError if it cannot be made, or if a package for the address is missing.
    """
    place = location(where)
    if isinstance(place, Path):
        return files.make_folder(place, "memories") if create else place
    try:
        from fsspec.core import url_to_fs

        system, root = url_to_fs(place, use_listings_cache=False)  # others add to the folder
    except ImportError as error:
        scheme = urlsplit(place).scheme.lower()
        fix = 'pip install "vxl2_jax[remote]"' if scheme in ("s3", "gs") else "install that package"
        raise RequestError(f"{place}: {first_line(error)}; {fix}") from error
    except Exception as error:  # each file system has its own
        raise RequestError(f"{place}: not an address of a folder ({first_line(error)})") from error
    digest = hashlib.sha256(place.rstrip("/").encode()).hexdigest()[:16]
    local = files.make_folder(compile_cache.user_cache() / "memories" / digest, "memories that are written or opened")
    folder = SharedFolder(place, system, root.rstrip("/"), local)
    if create and not folder.has_buckets:
        with folder._explained("made"):
            system.makedirs(folder.root, exist_ok=True)
    folder.names()  # raises before a model is loaded
    for path in local.iterdir():
        if (match := _COPY.fullmatch(path.name)) and not files.is_running(int(match[1])):
            with suppress(OSError):
                path.unlink()
    return folder
