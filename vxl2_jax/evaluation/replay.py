"""Replaying the original's oracle files over a benchmark: which of its questions they choose chunks for.

The original looks a question up by "<video file name>_<question>", and what it does not find, or finds to be null, it
answers over plain dense pre-filling with everything dense; so is it here. That is another memory of the same video.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.data import BenchmarkVideo
from vxl2_jax.evaluation.rows import Row
from vxl2_jax.relevance import oracle
from vxl2_jax.relevance.oracle import Oracle, OracleSelection

CHOSEN, NULL, ABSENT = "chosen", "null category", "no entry"
"""What oracle files say of a question: units; nothing, for its category is null; nothing at all."""


@dataclass(frozen=True)
class ReplayPass:
    """The questions that are asked of one memory of their video: options of `Model.watch` and of `Model.ask`, which
    they are, and a function that is told the prompt of each before it is asked."""

    watch: Mapping[str, Any]
    ask: Mapping[str, Any]
    holds: Callable[[BenchmarkVideo, Row], bool] = lambda item, row: True
    announce: Callable[[BenchmarkVideo, Row, str], None] = lambda item, row, prompt: None


@dataclass(frozen=True)
class Replay:
    """Oracle files, for the questions of a benchmark."""

    oracle: Oracle

    def parts(self, watch: Mapping[str, Any], ask: Mapping[str, Any]) -> list[ReplayPass]:
        """The questions that chunks are chosen for, by these options; and the others, everything dense."""
        by_prompt: dict[str, OracleSelection] = {}  # prompts hold options and subtitles, which the files' keys do not

        def announce(item: BenchmarkVideo, row: Row, prompt: str) -> None:
            by_prompt[f"{item.path.name}_{prompt}"] = self.choice(item, row)

        chosen = ReplayPass(
            watch,
            {**ask, "relevance": Oracle(self.oracle.source, by_prompt, most=self.oracle.most)},
            self.chooses,
            announce,
        )
        plain = ReplayPass(
            {**watch, "prev_blocks": None},
            {**ask, "relevance": "recent", "top_k": None},
            lambda item, row: not self.chooses(item, row),
        )
        return [chosen, plain]

    def choice(self, item: BenchmarkVideo, row: Row) -> OracleSelection | None:
        """What the files say of a question; None: they do not list it."""
        return self.oracle.find(keys(item, row))

    def chooses(self, item: BenchmarkVideo, row: Row) -> bool:
        """Whether chunks are chosen for a question; else it is asked over plain dense pre-filling."""
        found = self.choice(item, row)
        return found is not None and found.units is not None

    def told(self, item: BenchmarkVideo, row: Row) -> dict[str, Any]:
        """What a run's row says of the question."""
        found = self.choice(item, row)
        if found is None:
            null = any(value in self.oracle.plain for values in row.groups.values() for value in values)
            return {"said": NULL if null else ABSENT}
        if found.units is None:
            return {"said": NULL}
        sizes = {"chunk_size": found.chunk_size, "compression": found.compression}
        return {"said": CHOSEN, "category": found.category, "units": len(found.units), **sizes}


def read(name: str, path: str, items: Sequence[BenchmarkVideo]) -> Replay:
    """The oracle file or folder `path` for the videos of the benchmark called `name`.

    Raises RequestError for files that are not of the form, or that know none of the questions.
    """
    replay = Replay(oracle.read(path))
    if all(replay.told(item, row)["said"] == ABSENT for item in items for row in item.rows):
        raise RequestError(f"{path}: lists none of the questions; give the oracle file or folder of {name}")
    return replay


def digest(path: str) -> str:
    """SHA-256 of the oracle files that a path names."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in oracle.files(Path(path)))).hexdigest()


def keys(item: BenchmarkVideo, row: Row) -> Iterator[str]:
    """The keys that a question may be listed by: the video's file name, and without its ending (LVBench has that)."""
    names = [PurePath(name).name for name in row.files] + ([item.path.name] if item.path else [])
    question = question_of(row)
    for name in dict.fromkeys([*names, *(PurePath(name).stem for name in names)]):
        yield f"{name}_{question}"


def question_of(row: Row) -> str:
    """The question without the options that it may contain (MLVU's does)."""
    return row.question if row.options else row.question.split("\n(")[0].strip()
