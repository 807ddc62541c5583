"""Runs a study: a record per clip is appended to a JSON Lines file, and a later run resumes from that file.

The name of the file contains a hash of everything that its records have in common. The same command resumes; a command
with other settings writes another file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from vxl2_jax import RequestError, TooLongError, VideoError
from vxl2_jax.cli.options import progress
from vxl2_jax.storage import jsonl
from vxl2_jax.storage.locking import open_locked

Record = dict[str, Any]
Item = TypeVar("Item")


def run(
    folder: Path,
    about: Mapping[str, Any],
    items: Mapping[str, Item],
    answer: Callable[[Item], Record],
    *,
    keep_failures: bool = False,
) -> dict[str, Record]:
    """The record of every item by its key; missing ones are made and appended to the file.

    A record has "took_s", the seconds that it took. A video that cannot be watched gets a record {"error": reason}, and
    is tried again by the next run.

    Args:
      folder: where the file is; created if missing.
      about: what all records have in common, as JSON data: the first line of the file. "study" is the study's name.
      items: what is answered, by key.
      answer: an item → its record, as JSON data.
      keep_failures: return records with an error too.

    Raises:
      RequestError: the file cannot be written, is damaged, or another process is writing it; or, unless `keep_failures`,
        a video could not be watched. The other records are kept then.
    """
    path = records_path(folder, about)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder}: cannot be created ({error.strerror}); choose another --records") from error
    with open_locked(path) as file, progress(about["study"], "records", quiet=False) as advance:
        found = _resume(file, path, about)
        todo = [key for key in items if "error" in found.get(key, {"error": ""})]
        for number, key in enumerate(todo, len(items) - len(todo)):
            advance(number, len(items))
            start = time.perf_counter()
            try:
                record = answer(items[key])
            except (VideoError, TooLongError) as error:
                record = {"error": str(error)}
            found[key] = {"key": key, **record, "took_s": round(time.perf_counter() - start, 3)}
            jsonl.append(file, found[key])
    failed = [key for key in items if "error" in found[key]]
    if failed and not keep_failures:
        first = f"{failed[0]}: {found[failed[0]]['error']}"
        raise RequestError(f"{len(failed)} of {len(items)} not answered ({first}); run the command again to retry them")
    return {key: found[key] for key in items}


def records_path(folder: Path, about: Mapping[str, Any]) -> Path:
    """The file of the records with these settings."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    return folder / f"{about['study']}-{digest}.jsonl"


def _resume(file: IO[str], path: Path, about: Mapping[str, Any]) -> dict[str, Record]:
    """The records in a file, by key. An incomplete last line is removed; an empty file gets its first line."""
    try:
        first, *records = list(jsonl.resume(file, json.loads)) or [None]
        found = {record["key"]: record for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path}: not a file of records; remove it, or choose another --records") from error
    if first not in (None, json.loads(json.dumps(about))):
        raise RequestError(f"{path}: records with other settings; remove it, or choose another --records")
    if first is None:
        jsonl.append(file, dict(about))
    return found
