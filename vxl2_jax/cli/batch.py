"""`vxl2 batch`: answer questions about many videos, from a file of jobs into a file of answers."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from vxl2_jax.answer import Answer
from vxl2_jax.api import Model
from vxl2_jax.batch import Job
from vxl2_jax.cli import options, workers
from vxl2_jax.cli.options import given, progress
from vxl2_jax.errors import RequestError
from vxl2_jax.files import JOBS, is_address, parse_json, read_text, text_lines
from vxl2_jax.fleet.work import FleetLog, FleetWorker, WorkItem, size_of
from vxl2_jax.options import AskOptions, WatchOptions
from vxl2_jax.storage import jsonl
from vxl2_jax.storage.jsonl import append
from vxl2_jax.storage.locking import open_locked
from vxl2_jax.text import typed

_EXAMPLES = """example:
  vxl2 batch jobs.jsonl --out answers.jsonl

jobs.jsonl holds one line per video: {"video": "clip.mp4", "questions": ["Is there a dog?", "..."]}. Paths are relative
to its folder. answers.jsonl receives one line per job when it is answered: "job", which is the line of jobs.jsonl, with
the document of `vxl2 ask --json`, or with "error"; "refused" lists questions that could not be asked. While one video is
processed, the next one is read. With several workers the longest videos come first, and a video that ends its worker
three times is a line with "error". If the command is interrupted, the same command resumes with the missing lines. Equal
lines are answered once each."""


def add(commands: Any, help: str) -> None:
    """Add the command, with its line in `vxl2 --help`, to the subparsers `commands`."""
    batch = commands.add_parser(
        "batch",
        formatter_class=options.Help,
        epilog=_EXAMPLES,
        help=help,
        description="Answer questions about many videos, from a file of jobs into a file of answers.",
    )
    batch.set_defaults(run=run, interrupted="the same command resumes")
    batch.add_argument(
        "jobs", type=options.path, metavar="JOBS.jsonl", help="one JSON line per video, with its questions"
    )
    batch.add_argument(
        "--out",
        type=options.path,
        required=True,
        metavar="ANSWERS.jsonl",
        help="the file to which answers are appended",
    )
    options.add_model(batch)
    workers.add(batch)
    workers.add_memories(batch)
    options.add_options(batch, WatchOptions, "watching")
    options.add_options(batch, AskOptions, "asking")
    options.add_output(batch)


@dataclass(frozen=True)
class _Line:
    """A line of the jobs: its content, and what is wrong with it, if anything."""

    job: Any
    problem: str | None

    @cached_property
    def key(self) -> bytes:
        return _key(self.job)


def run(args: argparse.Namespace) -> None:
    """Run `vxl2 batch`."""
    lines = _read_jobs(args.jobs)
    watch, ask = given(args, WatchOptions), given(args, AskOptions)
    WatchOptions(**watch).check()
    AskOptions(**ask).check()
    workers.check_memories(args)
    did: dict[str, Any] | None = None
    with open_locked(args.out) as file:
        answered_before, failed = _read_answers(file, args.out, lines)
        missing = _missing(lines, answered_before)
        answered = len(lines) - len(missing)
        items = [_item(args.jobs.parent, number, line) for number, line in enumerate(missing) if not line.problem]
        recipe, log, started = (
            BatchRecipe(workers.loader(args), watch, ask, args.memories),
            FleetLog(),
            time.perf_counter(),
        )
        with progress("answering", "videos", args.quiet) as advance:
            written = 0

            def write(line: _Line, document: dict[str, Any]) -> None:
                nonlocal failed, written
                failed += "error" in document or "refused" in document
                written += 1
                append(file, {"job": line.job, **document})
                advance(answered + written, len(lines))

            problems = deque(number for number, line in enumerate(missing) if line.problem)
            for result in workers.fleet_of(args)(recipe, items, log) if items else ():
                while problems and problems[0] < result.item.key:
                    line = missing[problems.popleft()]
                    write(line, {"error": line.problem})
                write(missing[result.item.key], result.row)
            for number in problems:
                write(missing[number], {"error": missing[number].problem})
        if items:
            did = log.as_data(time.perf_counter() - started)
    counts = {"videos": len(lines), "answered_before": answered, "failed": failed}
    if args.json:
        print(typed.printable_json({"answers": str(args.out), **counts, "fleet": did}))
    else:
        print(typed.printable(f"{args.out}: {len(lines)} videos, {answered} answered before, {failed} failed"))
        if did and len(did["workers"]) > 1:
            print(workers.summary(did))
    if failed:
        raise RequestError(
            f'{failed} of {len(lines)} jobs failed: see "error" or "refused" in {args.out}; remove those lines to try again'
        )


@dataclass(frozen=True)
class BatchRecipe:
    """A worker of `vxl2 batch`: contents are (path of a video, questions), rows are documents; see `fleet.work.Recipe`."""

    load: Callable[[], Model]
    watch: dict[str, Any]
    ask: dict[str, Any]
    memories: Path | str | None = None

    def __call__(self) -> FleetWorker:
        """Load the model."""
        model = self.load()
        return FleetWorker({"model": model.name, "attention": model.kernel_reason}, partial(self._rows, model))

    def _rows(self, model: Model, contents: Iterator[tuple[str, list[str]]]) -> Iterator[dict[str, Any]]:
        from vxl2_jax.cli import render

        jobs = (Job(video, questions) for video, questions in contents)
        for result in model.answer_all(jobs, watch=self.watch, ask=self.ask, memories=self.memories):
            if result.memory is None:
                document: dict[str, Any] = {"error": str(result.error)}
            else:
                answers = [one for one in result.answers if isinstance(one, Answer)]
                document = {"model": model.name, **render.as_data(result.memory, answers, result.timings)}
                if refused := [str(one) for one in result.answers if not isinstance(one, Answer)]:
                    document["refused"] = refused
            del result  # frees its memory before the next video is watched
            yield document


def _item(folder: Path, number: int, line: _Line) -> WorkItem:
    video = str(_path(folder, line.job["video"]))
    return WorkItem(number, (video, line.job["questions"]), size_of(video))


def _path(folder: Path, video: str) -> Path:
    return Path(video) if is_address(video) else folder / video


def _key(job: Any) -> bytes:
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).digest()


def _missing(lines: list[_Line], answered: Counter[bytes]) -> list[_Line]:
    """The lines without an answer, given how many there are by key. Of equal lines each needs one of its own."""
    answered, missing = answered.copy(), []
    for line in lines:
        if answered[line.key] > 0:
            answered[line.key] -= 1
        else:
            missing.append(line)
    return missing


def _read_jobs(path: Path) -> list[_Line]:
    """The lines of a file of jobs. Raises RequestError for a file that holds no valid job."""
    lines = [_read_job(path, number, text) for number, text in text_lines(read_text(path, JOBS))]
    if not any(line.problem is None for line in lines):
        raise RequestError(lines[0].problem if lines and lines[0].problem else f"{path}: holds no job; {JOBS.fix}")
    return lines


def _read_job(path: Path, number: int, text: str) -> _Line:
    where = f"{path}, line {number}"
    try:
        job = parse_json(text, where, JOBS)
    except RequestError as error:
        return _Line(text, str(error))
    questions = job.get("questions") if isinstance(job, dict) else None
    valid = (
        isinstance(job, dict)
        and isinstance(job.get("video"), str)
        and job["video"] != ""
        and isinstance(questions, list)
        and questions != []
        and all(isinstance(question, str) and question.strip() for question in questions)
    )
    return _Line(job, None if valid else f"{where}: not a job; {JOBS.fix}")


def _read_answers(file: IO[str], path: Path, lines: list[_Line]) -> tuple[Counter[bytes], int]:
    """(how many answers the file has by key, how many of them failed).

    An incomplete last line, left by an interrupted run, is removed. Raises RequestError if the file holds anything else,
    and leaves it unchanged.
    """
    answered: Counter[bytes] = Counter()
    failed = 0
    try:
        for row in jsonl.resume(file, _parse, partial(_is_beginning, lines)):
            answered[_key(row.job)] += 1
            failed += row.failed
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: not a file of answers; choose another name") from error
    return answered, failed


class _Row(NamedTuple):
    """What resuming needs of a line of the answers."""

    job: Any
    failed: bool


class _Fields(msgspec.Struct):
    """The fields of a line of the answers, as unread JSON: most of a line is syntax that need not become objects."""

    job: msgspec.Raw
    answers: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    refused: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_DECODER = msgspec.json.Decoder(_Fields)


def _parse(line: str) -> _Row:
    """An answer. Raises ValueError for anything else."""
    try:
        fields = _DECODER.decode(line)
        job = json.loads(bytes(fields.job))
        answers, error, refused = (one is not msgspec.UNSET for one in (fields.answers, fields.error, fields.refused))
    except (msgspec.MsgspecError, UnicodeError):  # Python's JSON also has NaN, and halves of surrogate pairs
        row = json.loads(line)
        if not isinstance(row, dict) or "job" not in row:
            raise ValueError("not an answer") from None
        job, (answers, error, refused) = row["job"], (name in row for name in ("answers", "error", "refused"))
    if not (answers or error):
        raise ValueError("not an answer")
    return _Row(job, error or refused)


def _is_beginning(lines: list[_Line], incomplete: str) -> bool:
    """Whether an incomplete line is one of ours. Raises ValueError for a whole row of something else."""
    with suppress(json.JSONDecodeError, RecursionError):  # cut off
        _parse(incomplete)
    # Earlier versions wrote the fields of the job in place of "job".
    beginnings = {'{"job": '} | {_beginning(line.job) for line in lines if not line.problem}
    return any(one.startswith(incomplete[: len(one)]) for one in beginnings)


def _beginning(job: dict[str, Any]) -> str:
    return json.dumps({"video": job["video"], "questions": job["questions"]}).removesuffix("}")
