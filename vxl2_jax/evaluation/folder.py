"""The folder of a run: run.json says what it is, rows.*.jsonl hold a line per video, one file a process.

A line is of a video that was answered, or that could not be watched ("error"). The folder can be read at any time,
while it is written, too. Of several lines about a video the latest counts, but one with answers before one without.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.scores import Verdict
from vxl2_jax.storage import jsonl
from vxl2_jax.storage.locking import opened

RUN = "run.json"
LENGTHS = ((2, "up to 2 min"), (10, "2 to 10 min"), (30, "10 to 30 min"), (60, "30 to 60 min"))
LONGEST = "over an hour"
"""Of videos, as they were watched: what answers are grouped by beside the annotation fields."""


@dataclass(frozen=True)
class Answered:
    """One question of a run: its key (see `data.keys`), the verdict, its row in the file, and its video's."""

    key: str
    verdict: Verdict
    row: Mapping[str, Any]
    record: Mapping[str, Any]


def check(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder holds a run already. Raises RequestError naming what differs from `settings` (those of both)."""
    if not (folder / RUN).exists():
        if any(path.stat().st_size for path in folder.glob("rows.*.jsonl")):
            raise RequestError(f"{folder}: holds rows of a run, but no {RUN}; choose another --out, or remove them")
        return False
    there = flat(read_run(folder)["settings"])
    wanted = {key: value for key, value in flat(settings).items() if key in there}
    # As JSON gives it back: a tuple is a list there.
    if differing := [key for key, value in wanted.items() if json.loads(json.dumps(value)) != there[key]]:
        told = ", ".join(f"{key} {_shown(there[key])} (now {_shown(wanted[key])})" for key in differing)
        raise RequestError(f"{folder}: holds a run with other settings: {told}; choose another --out, or remove it")
    return True


def claim(folder: Path, settings: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
    """Make the folder that of a run with these settings, or raise RequestError if it is another's.

    Of processes that come at the same time, one writes run.json, whole, and the others find it.
    """
    part = folder / f".{RUN}.{os.getpid()}"
    try:
        part.write_text(json.dumps({"settings": settings, "made_with": made_with}, indent=1) + "\n")
        os.link(part, folder / RUN)
    except FileExistsError:
        check(folder, settings)
    except OSError as error:
        raise RequestError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    finally:
        part.unlink(missing_ok=True)


def read_run(folder: Path) -> dict[str, Any]:
    """What run.json says: {"settings", "made_with"}. Raises RequestError for a folder without one."""
    try:
        found = json.loads((folder / RUN).read_text())
        if isinstance(found["settings"], dict) and isinstance(found["made_with"], dict):
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise RequestError(
        f"{folder}: no run in it ({RUN} is missing or damaged); give a folder that `vxl2 eval --out` made"
    )


@contextmanager
def adding(folder: Path, process: int, processes: int) -> Iterator[IO[str]]:
    """The rows of one process, to be added to; half a line at the end is removed.

    Raises RequestError if another process is writing them, or it is no file of rows.
    """
    path = folder / f"rows.{process}-of-{processes}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from error
    with opened(path) as file:
        try:
            whole, torn = jsonl.whole_lines(file)
        except UnicodeDecodeError as error:
            raise _foreign(path, 1) from error
        _parsed(path, whole)
        if not torn.startswith("{"[: len(torn)]):
            raise _foreign(path, len(whole) + 1)
        jsonl.cut_back(file, whole)
        yield file


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """By video, the line that counts, in the order of the benchmark. Raises RequestError for a file that is damaged."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("rows.*.jsonl")):
        for row in read_rows(path):
            if "answers" in row or "answers" not in found.get(row["video"], {}):
                found[row["video"]] = row
    return dict(sorted(found.items(), key=lambda item: item[1]["index"]))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file of rows. Raises RequestError for anything else."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return _parsed(path, jsonl.whole_lines(file)[0])
    except UnicodeDecodeError as error:
        raise _foreign(path, 1) from error
    except OSError as error:
        raise RequestError(
            f"{path}: cannot be read ({error.strerror}); give a folder of `vxl2 eval`, or its rows"
        ) from error


def _parsed(path: Path, whole: Iterable[str]) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(whole, 1):
        try:
            row = json.loads(line)
            good = (
                isinstance(row["video"], str)
                and isinstance(row["index"], int)
                and ("answers" in row) != ("error" in row)
            )
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            raise _foreign(path, number)
        found.append(row)
    return found


def _foreign(path: Path, number: int) -> RequestError:
    return RequestError(f"{path}, line {number}: is no row of a run; remove the line, or choose another --out")


def answers(found: Iterable[Mapping[str, Any]]) -> Iterator[Answered]:
    """The questions of some records that were answered, grouped by video length, too."""
    for record in found:
        for row in record.get("answers", ()):
            groups = {field: tuple(values) for field, values in row["groups"].items()}
            groups["video length"] = (length_group(record["end_s"]),)
            yield Answered(row["key"], Verdict(row["correct"], row["counted"], row["named"], groups), row, record)


def length_group(seconds: float) -> str:
    """The group of a video of so many seconds."""
    return next((name for minutes, name in LENGTHS if seconds <= 60 * minutes), LONGEST)


def in_order(field: str, values: Iterable[str]) -> list[str]:
    """The values of a field as a table lists them: lengths and numbers by size, others as they came."""
    values = list(values)
    if field == "video length":
        names = [name for _, name in LENGTHS] + [LONGEST]
        return sorted(values, key=names.index)
    return sorted(values, key=int) if all(value.isdecimal() for value in values) else values


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One level: watch and ask options by their own names."""
    return {
        name: value
        for key, part in settings.items()
        for name, value in (part.items() if isinstance(part, Mapping) else [(key, part)])
    }


def _shown(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 40 else "none" if value is None else str(value)
