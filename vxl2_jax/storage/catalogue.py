"""A folder of memory files, one for each video, model and settings: their names, and what is in the folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vxl2_jax.errors import RequestError
from vxl2_jax.storage import locking, memory_file
from vxl2_jax.storage.shared import SharedFolder

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


def entries(folder: Path | SharedFolder, check: bool = False) -> Iterator[Entry]:
    """The memories of a folder, and incomplete ones, by name. check: read every byte and compare checksums.

    Raises RequestError if there is no such folder.
    """
    if isinstance(folder, SharedFolder):
        yield from _entries_at(folder, check)
        return
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


def _entries_at(folder: SharedFolder, check: bool) -> Iterator[Entry]:
    """Those at an address, where all are complete. Of each the identity is read, or with `check` all of it, here."""
    for name, size in folder.names():
        if not name.endswith(_SUFFIX):
            continue
        path = folder.local / f".{name}.{os.getpid()}.fetched"
        try:
            if check:
                folder.fetch(path, name)
                found = _entry(path, check)
                yield found._replace(path=Path(name), problem=found.problem.replace(str(path), name))
            else:
                identity = memory_file.read_identity(name, partial(folder.read, name))
                yield Entry(Path(name), size, OK, identity)
        except RequestError as error:
            yield Entry(Path(name), size, DAMAGED, {}, str(error))
        finally:
            path.unlink(missing_ok=True)


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


def prune(folder: Path | SharedFolder, check: bool = False) -> Iterator[Entry]:
    """Remove damaged memories and incomplete ones that nobody is writing, and yield them.

    Raises RequestError if a file cannot be removed.
    """
    for entry in entries(folder, check):
        if entry.state in (DAMAGED, INCOMPLETE):
            try:
                if isinstance(folder, SharedFolder):
                    folder.remove(entry.path.name)
                else:
                    entry.path.unlink(missing_ok=True)
            except OSError as error:
                raise RequestError(f"{entry.path}: cannot be removed ({error.strerror})") from error
            yield entry
