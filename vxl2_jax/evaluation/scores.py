"""From responses to percentages: a verdict on each, their sums, overall and by group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType

from vxl2_jax.evaluation.intervals import wilson
from vxl2_jax.evaluation.rows import Row, matches


@dataclass(frozen=True)
class Verdict:
    """On one response: the right letter? in the denominator? any letter at all? and the row's groups."""

    correct: bool
    counted: bool
    named: bool
    groups: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Score:
    """So many correct of so many."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """In percent; 0 of nothing."""
        return 100 * self.correct / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `accuracy` (Wilson), in percent; all of it for nothing."""
        return wilson(self.correct, self.total)

    def as_data(self) -> dict[str, int | float]:
        """JSON-ready, accuracy to four places as the original's sums have it."""
        return {"correct": self.correct, "total": self.total, "accuracy": round(self.accuracy, 4)}


def judge(benchmark: ModuleType, row: Row, response: str, read: Callable[[str], str] | None = None) -> Verdict:
    """The verdict of a benchmark on one response; `read` in the place of its own reads the letter."""
    letter = (read or benchmark.read)(response)
    return Verdict(matches(row, letter), benchmark.counts(response), letter in tuple("ABCDE"), row.groups)


def total(verdicts: Iterable[Verdict]) -> Score:
    """Their sum."""
    counted = [verdict for verdict in verdicts if verdict.counted]
    return Score(sum(verdict.correct for verdict in counted), len(counted))


def grouped(verdicts: Iterable[Verdict]) -> dict[str, dict[str, Score]]:
    """Sums by annotation field and value; a row of two task types counts in both."""
    parts: dict[str, dict[str, list[Verdict]]] = {}
    for verdict in verdicts:
        for field, values in verdict.groups.items():
            for value in values:
                parts.setdefault(field, {}).setdefault(value, []).append(verdict)
    return {field: {value: total(part) for value, part in by.items()} for field, by in parts.items()}
