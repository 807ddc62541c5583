"""From judged answers to marks: accuracies, intervals, chances, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.synthetic import questions
from vxl2_jax.evaluation import intervals


@dataclass(frozen=True)
class Judged:
    """One answer in one mode. `clip` and `number` are the question's, the same in all modes; inside: its evidence lies
    wholly in chunks that have to be chosen; loaded, dense: key/value tokens read, and those of the dense memory."""

    mode: str
    clip: int
    number: int
    type: str
    right: bool
    inside: bool
    loaded: int
    dense: int


def inside(question: questions.Question, groups: int, chunk_size: int) -> bool:
    """Whether no sampled frame of a question's evidence lies in the first or the last chunk, and there is evidence."""
    chunks = -(-groups // chunk_size)
    events = [questions.chunks_of(span, chunk_size, chunks) for span in question.evidence]
    return bool(events) and len(questions.inside(events, chunks)) == len(events)


def rate(rows: Sequence[Judged]) -> dict:
    """Accuracy in percent, its interval, and of how many."""
    right = sum(row.right for row in rows)
    if not rows:
        return {"questions": 0}
    interval = [round(bound, 1) for bound in intervals.wilson(right, len(rows))]
    return {"accuracy": round(100 * right / len(rows), 2), "interval": interval, "questions": len(rows)}


def summary(rows: Sequence[Judged], chances: dict[str, float]) -> dict:
    """What one mode got right, over all, by type, and over the questions whose evidence lies inside."""
    by_type = {
        kind: rate(part) | {"chance": round(100 * chances[kind], 1)}
        for kind in questions.TYPES
        if (part := [row for row in rows if row.type == kind])
    }
    ratio = sum(row.loaded for row in rows) / sum(row.dense for row in rows)
    lies_inside = rate([row for row in rows if row.inside])
    return rate(rows) | {"cache_ratio": round(ratio, 4), "by_type": by_type, "inside": lies_inside}


def difference(rows: Sequence[Judged], one: str, other: str, only_inside: bool = False) -> dict:
    """Accuracy of a mode less that of another over the same questions, in percentage points, with its 95 % interval: the
    questions of a clip taken together where there is a spread between clips, else as if they were independent."""
    counted = [row for row in rows if row.inside or not only_inside]
    right = [{(row.clip, row.number): row.right for row in counted if row.mode == mode} for mode in (one, other)]
    steps: dict[int, list[int]] = {}
    for (clip, number), first in right[0].items():
        steps.setdefault(clip, []).append(first - right[1][clip, number])
    every = [step for each in steps.values() for step in each]
    if not every:
        return {"questions": 0}
    interval = intervals.clustered_difference(steps)
    interval = interval or intervals.paired_difference(every.count(-1), every.count(1), len(every))
    points = round(100 * sum(every) / len(every), 2)
    return {"points": points, "interval": [round(bound, 2) for bound in interval], "questions": len(every)}
