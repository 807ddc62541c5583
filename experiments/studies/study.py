"""What a study is: clips of some kinds, ways to watch and to ask them, and a picture of what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.synthetic.clips import Clip
from experiments.synthetic.questions import Question
from vxl2_jax.layout import PrefillRule


@dataclass(frozen=True)
class Setting:
    """One way to watch and to ask.

    Attributes:
      rule: chunk-based pre-filling; `prev_blocks` None is dense.
      share: percent of the dense memory's key/value bytes that may be loaded: as many chunks are chosen, besides the
        first and the last, as fit. None: the whole cache is dense.
      relevance: a scorer of `vxl2_jax.relevance`; "lot" (drawn for every question), or "evidence" (the chunks that
        the answer rests on, of every event the one that shows it longest first; no scorer can know them; then by lot).
      chunk_size: groups per bi-level chunk; compression: visual tokens pooled into one in the others.
    """

    rule: PrefillRule = PrefillRule(4, 3)
    share: int | None = None
    relevance: str = "attention"
    chunk_size: int = 1
    compression: int = 8


DENSE, CHUNKED = Setting(PrefillRule(4, None)), Setting()


class Asked(NamedTuple):
    """A question, and the group of questions that it is counted with."""

    label: str
    question: Question


Draw = Callable[[np.random.Generator, str], tuple[Clip, list[Asked]]]
"""(random stream, footage behind the pictures) → a clip and its questions. Those with long answers come last:
questions are answered 16 at a time, and a batch takes as long as its longest answer."""


@dataclass(frozen=True)
class Study:
    """One open question.

    Attributes:
      name: of its files; title: the question, for its picture.
      settings: by name; the first is what the others are compared with.
      contents: how the clips of each kind are drawn. Clip i of every kind comes from the same random stream.
      clips: how many of each kind by default.
      draw: writes the picture of a report (see `tally.report`).
      rows: the study whose answers are used, where that is another one.
    """

    name: str
    title: str
    settings: Mapping[str, Setting]
    contents: Mapping[str, Draw]
    clips: int
    draw: Callable[[Path, Mapping[str, Any]], None] = field(repr=False)
    rows: str = ""

    @property
    def rows_name(self) -> str:
        return self.rows or self.name


def labelled(questions: Sequence[Question]) -> list[Asked]:
    """Questions counted by their type."""
    return [Asked(question.type, question) for question in questions]
