"""Replays the original's oracle files over a benchmark: which questions they select units for, and the others.

The original looks a question up by "<video file name>_<question>". If the entry is missing or null, it answers over
plain dense pre-filling with everything loaded dense, which needs another memory of the same video. So does this replay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.data import BenchmarkVideo
from vxl2_jax.evaluation.rows import Row
from vxl2_jax.files import ORACLE, read_bytes
from vxl2_jax.relevance import oracle
from vxl2_jax.relevance.oracle import Oracle, OracleSelection

Outcome = Literal["chosen", "null category", "no entry"]
CHOSEN, NULL, ABSENT = get_args(Outcome)
"""What oracle files have for a question: units, a null category, or nothing."""


@dataclass(frozen=True)
class ReplayPass:
    """The questions asked of one memory of each video.

    Attributes:
      watch, ask: options of `Model.watch` and `Model.ask`.
      includes: whether a question belongs to this pass.
      before_asking: called with each question and its prompt before it is asked.
    """

    watch: Mapping[str, Any]
    ask: Mapping[str, Any]
    includes: Callable[[BenchmarkVideo, Row], bool] = lambda item, row: True
    before_asking: Callable[[BenchmarkVideo, Row, str], None] = lambda item, row, prompt: None


@dataclass(frozen=True)
class Replay:
    """Oracle files, looked up for the questions of a benchmark."""

    oracle: Oracle

    def passes(self, watch: Mapping[str, Any], ask: Mapping[str, Any]) -> list[ReplayPass]:
        """Two passes: the questions with units, asked with these options, and the others, with everything dense."""
        by_prompt: dict[str, OracleSelection] = {}  # prompts contain options and subtitles; the files' keys do not

        def add_selection(item: BenchmarkVideo, row: Row, prompt: str) -> None:
            if found := self.selection(item, row):
                by_prompt[f"{item.file.name}_{prompt}"] = found

        with_units = ReplayPass(
            watch,
            {**ask, "relevance": Oracle(self.oracle.source, by_prompt, max_chunks=self.oracle.max_chunks)},
            self.has_units,
            add_selection,
        )
        plain = ReplayPass(
            {**watch, "prev_blocks": None},
            {**ask, "relevance": "recent", "top_k": None},
            lambda item, row: not self.has_units(item, row),
        )
        return [with_units, plain]

    def selection(self, item: BenchmarkVideo, row: Row) -> OracleSelection | None:
        """The files' entry for a question; None if there is none."""
        return self.oracle.find(lookup_keys(item, row))

    def has_units(self, item: BenchmarkVideo, row: Row) -> bool:
        """Whether the files select units for a question; if not, it is asked over plain dense pre-filling."""
        found = self.selection(item, row)
        return found is not None and found.units is not None

    def describe(self, item: BenchmarkVideo, row: Row) -> dict[str, Any]:
        """The "oracle" entry of a question in a run's record."""
        found = self.selection(item, row)
        if found is None:
            null = any(value in self.oracle.plain for values in row.groups.values() for value in values)
            return {"outcome": NULL if null else ABSENT}
        if found.units is None:
            return {"outcome": NULL}
        sizes = {"chunk_size": found.chunk_size, "compression": found.compression}
        return {"outcome": CHOSEN, "category": found.category, "units": len(found.units), **sizes}


def read(name: str, path: str, items: Sequence[BenchmarkVideo]) -> Replay:
    """Read an oracle file, or a folder of them, for the videos of the benchmark `name`.

    Raises RequestError for files of another format, or without an entry for any question.
    """
    replay = Replay(oracle.read(path))
    if all(replay.describe(item, row)["outcome"] == ABSENT for item in items for row in item.rows):
        raise RequestError(f"{path}: lists none of the questions; give the oracle file or folder of {name}")
    return replay


def digest(path: str) -> str:
    """SHA-256 of the oracle files at a path."""
    return hashlib.sha256(b"".join(read_bytes(file, ORACLE) for file in oracle.files(Path(path)))).hexdigest()


def lookup_keys(item: BenchmarkVideo, row: Row) -> Iterator[str]:
    """Possible keys of a question: with the video's file name, and with that name without its extension (LVBench)."""
    names = [PurePath(name).name for name in row.files] + ([item.path.name] if item.path else [])
    question = question_text(row)
    for name in dict.fromkeys([*names, *(PurePath(name).stem for name in names)]):
        yield f"{name}_{question}"


def question_text(row: Row) -> str:
    """The question without options inside (MLVU's questions contain them)."""
    return row.question if row.options else row.question.split("\n(")[0].strip()
