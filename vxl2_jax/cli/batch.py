"""`vxl2 batch`: answer questions about many videos, from a file of jobs into a file of answers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vxl2_jax.batch import Job
from vxl2_jax.cli import options
from vxl2_jax.cli.options import given, progress
from vxl2_jax.errors import RequestError, VideoError
from vxl2_jax.options import AskOptions, WatchOptions
from vxl2_jax.storage.jsonl import append, read_lines, truncate_after
from vxl2_jax.storage.locking import open_locked

_EXAMPLES = """example:
  vxl2 batch jobs.jsonl --out answers.jsonl

jobs.jsonl holds one line per video: {"video": "clip.mp4", "questions": ["Is there a dog?", "..."]}. Paths are relative
to its folder. answers.jsonl receives one line per video when it is answered: the fields of the job, with the document of
`vxl2 ask --json`, or with "error". While one video is processed, the next one is read. If the command is interrupted,
the same command resumes with the missing lines."""


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
    batch.add_argument("jobs", type=Path, metavar="JOBS.jsonl", help="one JSON line per video, with its questions")
    batch.add_argument(
        "--out", type=Path, required=True, metavar="ANSWERS.jsonl", help="the file to which answers are appended"
    )
    options.add_model(batch)
    options.add_options(batch, WatchOptions, "watching")
    options.add_options(batch, AskOptions, "asking")
    options.add_output(batch, json=False)


def run(args: argparse.Namespace) -> None:
    """Run `vxl2 batch`."""
    from vxl2_jax.cli import render

    rows = list(_read_jobs(args.jobs))
    watch, ask = given(args, WatchOptions), given(args, AskOptions)
    WatchOptions(**watch).check()
    AskOptions(**ask).check()
    with open_locked(args.out) as file:
        answered = {_key(line) for line in _read_answers(file, args.out, rows)}
        missing = [row for row in rows if _key(row) not in answered]
        failed = 0
        if missing:
            model = options.load_model(args)
            jobs = (Job(args.jobs.parent / row["video"], row["questions"]) for row in missing)
            with progress("answering", "videos", args.quiet) as advance:
                results = model.answer_all(jobs, watch=watch, ask=ask)
                for number, (row, result) in enumerate(zip(missing, results, strict=True), 1):
                    if result.memory is None:
                        failed += 1
                        document: dict[str, Any] = {"error": str(result.error)}
                    else:
                        document = render.as_data(result.memory, result.answers, result.timings)
                        document = {"model": model.name, "watched": document.pop("video"), **document}
                    append(file, row | document)
                    advance(len(rows) - len(missing) + number, len(rows))
    print(f"{args.out}: {len(rows)} videos, {len(rows) - len(missing)} answered before, {failed} failed")
    if failed:
        raise VideoError(
            f'{failed} of {len(rows)} videos could not be watched: see "error" in {args.out}; '
            "remove those lines to try again"
        )


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row["video"], row["questions"]])


def _read_jobs(path: Path) -> Iterator[dict[str, Any]]:
    """The jobs in a file. Raises RequestError with the number of the invalid line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot read the jobs ({error}); give a file of JSON lines") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            row: dict[str, Any] = {}
            try:
                row = json.loads(line)
                video, questions = row["video"], row["questions"]
                valid = (
                    isinstance(video, str)
                    and isinstance(questions, list)
                    and questions != []
                    and all(isinstance(question, str) and question.strip() for question in questions)
                )
            except (ValueError, KeyError, TypeError):
                valid = False
            if not valid:
                raise RequestError(
                    f'{path}, line {number}: not a job; write {{"video": "clip.mp4", "questions": ["…"]}}'
                )
            yield row


def _read_answers(file: IO[str], path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers in the file. An incomplete last line, left by an interrupted run, is removed.

    Raises RequestError if the file holds anything else, and leaves it unchanged.
    """
    foreign = RequestError(f"{path}: not a file of answers; choose another name")
    beginnings = [json.dumps(row)[:-1] for row in rows]
    try:
        lines, incomplete = read_lines(file)
    except UnicodeDecodeError as error:
        raise foreign from error
    if incomplete and not any(incomplete.startswith(text) or text.startswith(incomplete) for text in beginnings):
        raise foreign
    try:
        answers = [json.loads(line) for line in lines]
        if not all(_key(row) and ("answers" in row or "error" in row) for row in answers):
            raise foreign
    except (ValueError, KeyError, TypeError) as error:
        raise foreign from error
    truncate_after(file, lines)
    return answers
