"""`vxl2 batch`: many videos, each with its questions, from a file into a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vxl2_jax.cli import options
from vxl2_jax.cli.options import ASKING, WATCHING, given, progress
from vxl2_jax.errors import RequestError, VideoError

_EXAMPLES = """example:
  vxl2 batch jobs.jsonl --out answers.jsonl

jobs.jsonl holds a line per video: {"video": "clip.mp4", "questions": ["Is there a dog?", "..."]}; paths count from
its folder. answers.jsonl gets a line per video as it is answered, with the job's other fields: the document of
`vxl2 ask --json`, or "error". The next video is read while one is watched and answered. If it is cut off, the same
command goes on with the lines that are missing."""


def add(commands) -> None:
    batch = commands.add_parser(
        "batch",
        formatter_class=options.Help,
        epilog=_EXAMPLES,
        help="answer questions about many videos",
        description="Answer questions about many videos, from a file of jobs into a file of answers.",
    )
    batch.set_defaults(run=run, interrupted="the same command goes on where it was")
    batch.add_argument("jobs", type=Path, metavar="JOBS.jsonl", help="a line of JSON per video, with its questions")
    batch.add_argument(
        "--out", type=Path, required=True, metavar="ANSWERS.jsonl", help="the file that the answers are added to"
    )
    options.add_model(batch)
    options.add_watching(batch)
    options.add_asking(batch)
    batch.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> None:
    """`vxl2 batch`."""
    from vxl2_jax import generate
    from vxl2_jax.batch import Job
    from vxl2_jax.cli import render
    from vxl2_jax.storage.jsonl import append
    from vxl2_jax.storage.locking import open_locked

    rows = list(_rows(args.jobs))
    generate.AskOptions(**given(args, ASKING)).check()
    with open_locked(args.out) as file:
        answered = {_key(line) for line in _answers(file, args.out, rows)}
        left = [row for row in rows if _key(row) not in answered]
        failed = 0
        if left:
            model = options.load_model(args)
            jobs = (Job(args.jobs.parent / row["video"], row["questions"]) for row in left)
            with progress("answering", "videos", args.quiet) as advance:
                answers = model.answer_all(jobs, watch=given(args, WATCHING), ask=given(args, ASKING))
                for number, (row, done) in enumerate(zip(left, answers, strict=True), 1):
                    if done.error:
                        failed += 1
                        found: dict[str, Any] = {"error": str(done.error)}
                    else:
                        found = {"model": model.name, **render.as_data(done.memory, done.answers, dict(done.timings))}
                        found["watched"] = found.pop("video")
                    append(file, row | found)
                    advance(len(rows) - len(left) + number, len(rows))
    print(f"{args.out}: {len(rows)} videos, {len(rows) - len(left)} of them were there, {failed} could not be watched")
    if failed:
        raise VideoError(
            f'{failed} of {len(rows)} videos could not be watched: see "error" in {args.out}; '
            "remove those lines to try again"
        )


def _key(row: dict) -> str:
    return json.dumps([row["video"], row["questions"]])


def _rows(path: Path) -> Iterator[dict]:
    """The jobs of a file, or RequestError naming the line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot read the jobs ({error}); give a file of JSON lines") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                video, questions = row["video"], row["questions"]
                good = (
                    isinstance(video, str)
                    and isinstance(questions, list)
                    and questions != []
                    and all(isinstance(question, str) and question.strip() for question in questions)
                )
            except (ValueError, KeyError, TypeError):
                good = False
            if not good:
                raise RequestError(
                    f'{path}, line {number}: not a job; write {{"video": "clip.mp4", "questions": ["…"]}}'
                )
            yield row


def _answers(file: IO[str], path: Path, rows: list[dict]) -> list[dict]:
    """The answers that are in the file; the beginning of one, cut off when it was written, is removed.

    Raises RequestError for a file that holds anything else, and leaves it alone.
    """
    from vxl2_jax.storage.jsonl import read_lines, truncate_after

    foreign = RequestError(f"{path}: is no file of answers; choose another name")
    begins = [json.dumps(row)[:-1] for row in rows]
    try:
        lines, torn = read_lines(file)
    except UnicodeDecodeError as error:
        raise foreign from error
    if torn and not any(torn.startswith(begin) or begin.startswith(torn) for begin in begins):
        raise foreign
    try:
        found = [json.loads(line) for line in lines]
        if not all(_key(row) and ("answers" in row or "error" in row) for row in found):
            raise foreign
    except (ValueError, KeyError, TypeError) as error:
        raise foreign from error
    truncate_after(file, lines)
    return found
