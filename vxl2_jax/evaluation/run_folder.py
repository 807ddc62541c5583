"""The folder of a run: run.json has the settings, rows.*.jsonl one record per video, fleet.jsonl what workers did.

A record holds the "answers" about a video, or the "error" why it could not be watched. The folder can be read at any
time, also while it is being written. Of several records about a video the last one counts, but answers replace errors.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.records import BENCHMARK, RunKind, check_record, check_run
from vxl2_jax.evaluation.scores import Verdict
from vxl2_jax.evaluation.settings import watch_settings
from vxl2_jax.files import RESULTS, ROWS, check_output, open_lines, read_json_object
from vxl2_jax.storage import jsonl
from vxl2_jax.storage.locking import open_locked

RUN_FILE = "run.json"
ROWS_FILE = "rows.0-of-1.jsonl"
"""What is written; earlier versions wrote a file for each of several processes, and all are read."""
FLEET_FILE = "fleet.jsonl"
RECORDS = replace(ROWS, fix="give a folder of `vxl2 eval`, or a file of its rows")
REPORT_FILES = ("report.json", "report.md", "report.png")
"""What is written into the folder at the end of a run."""
LENGTH_GROUPS = ((2, "up to 2 min"), (10, "2 to 10 min"), (30, "10 to 30 min"), (60, "30 to 60 min"))
"""(minutes at most, name): answers are grouped by the length of the watched video, besides the annotation fields."""
LONGEST_GROUP = "over an hour"


@dataclass(frozen=True)
class AnsweredQuestion:
    """One question of a run: its key (see `data.question_keys`), the verdict, its entry in the record, and the record."""

    key: str
    verdict: Verdict
    answer: Mapping[str, Any]
    record: Mapping[str, Any]


def check_settings(folder: Path, settings: Mapping[str, Any], kind: RunKind = BENCHMARK) -> bool:
    """Whether the folder already holds a run. Raises RequestError if a setting that both have differs."""
    if not (folder / RUN_FILE).exists():
        if any(path.stat().st_size for path in folder.glob("rows.*.jsonl")):
            raise RequestError(
                f"{folder}: holds rows of a run, but no {RUN_FILE}; choose another --out, or remove them"
            )
        return False
    stored = flatten(read_run(folder, kind)["settings"])
    # Compared as JSON gives them back: tuples become lists.
    given = json.loads(json.dumps({key: value for key, value in flatten(settings).items() if key in stored}))
    if differing := [key for key, value in given.items() if value != stored[key]]:
        changes = ", ".join(f"{key} {_shorten(stored[key])} (now {_shorten(given[key])})" for key in differing)
        raise RequestError(f"{folder}: holds a run with other settings: {changes}; choose another --out, or remove it")
    return True


def claim(folder: Path, settings: Mapping[str, Any], made_with: Mapping[str, Any], kind: RunKind = BENCHMARK) -> None:
    """Write run.json, or check the settings if it exists. Raises RequestError if they differ.

    Safe when several processes start at the same time: one creates the whole file, the others find it.
    """
    partial = folder / f".{RUN_FILE}.{os.getpid()}"
    try:
        partial.write_text(json.dumps({"settings": settings, "made_with": made_with}, indent=1) + "\n")
        os.link(partial, folder / RUN_FILE)
    except FileExistsError:
        check_settings(folder, settings, kind)
    except OSError as error:
        raise RequestError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    finally:
        partial.unlink(missing_ok=True)


def read_run(folder: Path, kind: RunKind = BENCHMARK) -> dict[str, Any]:
    """The content of run.json, {"settings", "made_with"}. Raises RequestError if it is missing or damaged."""
    try:
        found = read_json_object(folder / RUN_FILE, RESULTS)
        check_run(found, kind)
    except (RequestError, ValueError) as error:
        raise RequestError(
            f"{folder}: no run in it ({RUN_FILE} is missing or damaged); give a folder that `vxl2 eval --out` made"
        ) from error
    settings = kind.defaults | found["settings"]
    if "watch" in settings:  # runs of earlier versions hold only the options that were given
        settings["watch"] = watch_settings(settings["watch"])
    return found | {"settings": settings}


@contextmanager
def open_records(folder: Path, kind: RunKind = BENCHMARK) -> Generator[IO[str], None, None]:
    """The records, open for appending. A partial last line is removed. A folder that was made for them goes again if an error
    comes before the first record.

    Raises RequestError if another process is writing the file, it holds anything else, or reports cannot be written.
    """
    path, is_new = folder / ROWS_FILE, not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder}: cannot be created ({error.strerror}); choose another --out") from error
    for name in REPORT_FILES:
        check_output(folder / name)
    try:
        with open_locked(path) as file:
            collections.deque(_records(path, file, kind, jsonl.resume), maxlen=0)  # checks them, and keeps none
            yield file
    except BaseException:
        with suppress(OSError):  # other files are worth keeping
            if is_new and not path.exists():
                folder.rmdir()
        raise


def add_fleet(folder: Path, did: Mapping[str, Any]) -> None:
    """Note what a fleet did (see `fleet.work.FleetLog`), as one line for each time that the run was started."""
    try:
        with (folder / FLEET_FILE).open("a", encoding="utf-8") as file:
            jsonl.append(file, dict(did))
    except OSError as error:
        raise RequestError(f"{folder / FLEET_FILE}: cannot be written ({error.strerror}); remove it") from error


def read_errors(folder: Path, kind: RunKind = BENCHMARK) -> dict[str, str | None]:
    """By video, the error of the record that counts, None for answers. Raises RequestError for a damaged file."""
    found: dict[str, str | None] = {}
    for path in sorted(folder.glob("rows.*.jsonl")):
        for record in _read_file(path, kind):
            if "answers" in record:
                found[record["video"]] = None
            elif found.get(record["video"], "") is not None:
                found[record["video"]] = record["error"]
    return found


def read_records(folder: Path, kind: RunKind = BENCHMARK) -> dict[str, dict[str, Any]]:
    """By video, the record that counts, in the order of the benchmark. Raises RequestError for a damaged file."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("rows.*.jsonl")):
        for record in _read_file(path, kind):
            if "answers" in record or "answers" not in found.get(record["video"], {}):
                found[record["video"]] = record
    return dict(sorted(found.items(), key=lambda item: item[1]["index"]))


def read_file(path: Path, kind: RunKind = BENCHMARK) -> list[dict[str, Any]]:
    """All complete records of one file. Raises RequestError for any other file."""
    return list(_read_file(path, kind))


def _read_file(path: Path, kind: RunKind) -> Iterator[dict[str, Any]]:
    with open_lines(path, RECORDS) as file:
        yield from _records(path, file, kind, lambda *given: (record for record, _ in jsonl.read(*given)))


def _records(
    path: Path, file: IO[str], kind: RunKind, read: Callable[..., Iterator[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """The records that `read` yields, which is a function like `jsonl.resume`. Raises RequestError for any other file."""

    def parse(line: str) -> dict[str, Any]:
        record = json.loads(line)
        check_record(record, kind)
        return record

    number = 1
    try:
        for record in read(file, parse, _is_beginning):
            yield record
            number += 1
    except (ValueError, RecursionError) as error:
        raise _invalid_line(path, number) from error


def _is_beginning(incomplete: str) -> bool:
    """Whether an incomplete line may be one of ours, which a killed program left."""
    return incomplete.startswith('{"index": '[: len(incomplete)])


def _invalid_line(path: Path, number: int) -> RequestError:
    return RequestError(f"{path}, line {number}: not a row of a run; remove the line, or choose another --out")


def answered_questions(records: Iterable[Mapping[str, Any]]) -> Iterator[AnsweredQuestion]:
    """The answered questions of some records, grouped by "video length" too."""
    for record in records:
        for answer in record.get("answers", ()):
            groups = {field: tuple(values) for field, values in answer["groups"].items()}
            groups["video length"] = (length_group(record["end_s"]),)
            verdict = Verdict(bool(answer["correct"]), answer["counted"], answer["named"], groups)
            yield AnsweredQuestion(answer["key"], verdict, answer, record)


def length_group(seconds: int | float) -> str:
    """The group of a video with this length."""
    return next((name for minutes, name in LENGTH_GROUPS if seconds <= 60 * minutes), LONGEST_GROUP)


def sort_values(field: str, values: Iterable[str]) -> list[str]:
    """The values of a field in a table's order: lengths and numbers by size, others as given."""
    values = list(values)
    if field == "video length":
        names = [name for _, name in LENGTH_GROUPS] + [LONGEST_GROUP]
        return sorted(values, key=names.index)
    return sorted(values, key=int) if all(value.isdecimal() and len(value) < 20 for value in values) else values


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings on one level: options of watching and asking under their own names."""
    return {
        name: value
        for key, part in settings.items()
        for name, value in (part.items() if isinstance(part, Mapping) else [(key, part)])
    }


def _shorten(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 40 else "none" if value is None else str(value)
