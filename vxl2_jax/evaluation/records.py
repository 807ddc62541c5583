"""The types of what a run's folder holds, which `run_folder` checks when it reads.

Fields that are not listed here are kept as they are. Numbers are bounded, so that sums of them are finite.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
from msgspec import Meta

from vxl2_jax.evaluation.choices import GENERATE
from vxl2_jax.evaluation.replay import Outcome
from vxl2_jax.evaluation.settings import RELEASED

Count = Annotated[int, Meta(ge=0, le=2**53)]
Number = Annotated[float, Meta(ge=-1e15, le=1e15)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Scalar = str | int | Number | bool | None
Benchmark = Annotated[str, Meta(pattern=f"^({'|'.join(RELEASED)})$")]
"""The name of a benchmark; from the table of settings, so that a new benchmark need not be listed here as well."""


class CacheSize(TypedDict):
    """Tokens whose keys and values were loaded, and those of the whole dense level."""

    tokens: Count
    tokens_dense: Count


class AttentionSize(TypedDict):
    """Pairs of tokens in pre-filling."""

    pairs_kept: Count
    pairs_causal: Count


class OracleEntry(TypedDict):
    """What the replayed oracle files list for a question."""

    outcome: Outcome
    category: NotRequired[str | None]
    units: NotRequired[Count]
    chunk_size: NotRequired[Count | None]
    compression: NotRequired[Count | None]


class BenchmarkAnswer(TypedDict):
    """A question of a benchmark with the response and the verdict on it."""

    key: str
    id: str | None
    question: str
    answer: str | None
    response: str
    correct: bool | None
    counted: bool
    named: bool
    groups: dict[str, list[str]]
    cache: CacheSize
    oracle: NotRequired[OracleEntry]


class FailedQuestion(TypedDict):
    """A question that could not be asked."""

    question: str
    error: str


class MomentAnswer(TypedDict):
    """A sentence of a grounding benchmark with the response and the scores of chunks."""

    id: str
    query: str
    windows: Annotated[list[tuple[Seconds, Seconds]], Meta(min_length=1)]
    response: str
    chunks: Annotated[list[tuple[Seconds, Seconds, Number]], Meta(min_length=1)]


class FailedRecord(TypedDict):
    """A video that could not be watched or asked about."""

    index: Count
    video: str
    error: str


class _AnsweredRecord(TypedDict):
    index: Count
    video: str
    end_s: Seconds
    wall_s: NotRequired[Seconds]
    failed: NotRequired[list[FailedQuestion]]
    notes: NotRequired[list[str]]


class BenchmarkRecord(_AnsweredRecord):
    """A video of a benchmark with its answers."""

    attention: AttentionSize
    watching_s: NotRequired[dict[str, Seconds]]
    asking_s: NotRequired[dict[str, Seconds]]
    executables: NotRequired[Count]
    answers: list[BenchmarkAnswer]


class GroundingRecord(_AnsweredRecord):
    """A video of a grounding benchmark with its answers."""

    answers: list[MomentAnswer]


class _Settings(TypedDict):
    videos: Count
    watch: dict[str, Scalar]
    ask: dict[str, Scalar]


class BenchmarkSettings(_Settings):
    """The settings of a run of a benchmark."""

    benchmark: Benchmark
    mode: Literal["dense", "chunked", "bilevel"]
    questions: Count
    subtitles: bool
    answer: NotRequired[Literal["generate", "likelihood"]]
    left_out: NotRequired[list[str]]
    oracle: NotRequired[str]


class GroundingSettings(_Settings):
    """The settings of a grounding run."""

    benchmark: str
    mode: str
    moments: Count
    left_out: Count
    template: str


class RunKind(msgspec.Struct, frozen=True):
    """A kind of run: the types of its settings and of the records of its answered videos.

    defaults: settings that runs of earlier versions do not have.
    """

    settings: Any
    record: Any
    defaults: dict[str, Any] = {}


BENCHMARK = RunKind(BenchmarkSettings, BenchmarkRecord, {"answer": GENERATE})
GROUNDING = RunKind(GroundingSettings, GroundingRecord)
OTHER = RunKind(dict[str, Any], dict[str, Any])
"""A folder of something else that is made in steps under one set of settings."""


class RunFile(TypedDict):
    """run.json; the settings are checked by kind."""

    settings: dict[str, Any]
    made_with: dict[str, Scalar]


def check_record(record: Any, kind: RunKind) -> None:
    """Raise ValueError for anything but a record of the kind."""
    answered = isinstance(record, dict) and "answers" in record
    if answered and "error" in record:
        raise ValueError("a record has answers or an error")
    msgspec.convert(record, kind.record if answered else FailedRecord)


def check_run(content: Any, kind: RunKind) -> None:
    """Raise ValueError for anything but the content of run.json."""
    msgspec.convert(content, RunFile)
    msgspec.convert(content["settings"], kind.settings)
