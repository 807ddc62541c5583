"""A folder of memory files, one for each video, model and settings: their names, and what is in the folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vxl2_jax.errors import RequestError
from vxl2_jax.storage import locking, memory_file

_SUFFIX = ".memory"
OK, DAMAGED, INCOMPLETE, WRITING = "ok", "damaged", "incomplete", "being written"
"""States of an entry. An incomplete one resumes when its video is watched again; a damaged one is of no use."""


class Entry(NamedTuple):
    """A file of a catalogue.

    identity: see `VideoMemory.identity`; empty unless it can be read. problem: what is wrong with it, if it is damaged.
    """

    path: Path
    bytes: int
    state: str
    identity: dict[str, Any]
    problem: str = ""


def path_in(folder: Path, name: str, identity: dict[str, Any]) -> Path:
    """Where the memory with this identity is, or will be. name: of the video."""
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]
    stem = re.sub(r"[^\w.-]", "_", Path(name).stem)[:60].lstrip(".") or "video"
    return folder / f"{stem}.{digest}{_SUFFIX}"


def entries(folder: Path, check: bool = False) -> Iterator[Entry]:
    """The memories of a folder, and incomplete ones, by name. check: read every byte and compare checksums.

    Raises RequestError if there is no such folder.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise RequestError(
            f"{folder}: not a folder that can be read ({error.strerror}); give one of memories"
        ) from error
    for path in paths:
        with suppress(FileNotFoundError):  # a memory was finished, or removed, meanwhile
            if path.name.endswith(f"{_SUFFIX}.part"):
                state = WRITING if _is_locked(path) else INCOMPLETE
                yield Entry(path, path.stat().st_size, state, {})
            elif path.suffix == _SUFFIX:
                yield _entry(path, check)


def _entry(path: Path, check: bool) -> Entry:
    size = path.stat().st_size
    try:
        return Entry(path, size, OK, memory_file.read(path, check).identity)
    except RequestError as error:
        return Entry(path, size, DAMAGED, {}, str(error))


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            locking.lock(file, path)
        except RequestError:
            return True
    return False


def prune(folder: Path, check: bool = False) -> Iterator[Entry]:
    """Remove damaged memories and incomplete ones that nobody is writing, and yield them.

    Raises RequestError if a file cannot be removed.
    """
    for entry in entries(folder, check):
        if entry.state in (DAMAGED, INCOMPLETE):
            try:
                entry.path.unlink(missing_ok=True)
            except OSError as error:
                raise RequestError(f"{entry.path}: cannot be removed ({error.strerror})") from error
            yield entry
