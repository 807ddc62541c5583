"""From responses to accuracies: a verdict on each response, and their sums overall and by group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType

from vxl2_jax.evaluation.intervals import wilson
from vxl2_jax.evaluation.rows import Row, matches


@dataclass(frozen=True)
class Verdict:
    """The judgement of one response.

    Attributes:
      correct: it names the correct option.
      counted: it counts in the denominator. A response to a question without a correct answer does not.
      named: it names an option at all.
      groups: those of its row.
    """

    correct: bool
    counted: bool
    named: bool
    groups: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Score:
    """A count of correct responses out of a total."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """In percent; 0 if the total is 0."""
        return 100 * self.correct / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `accuracy` (Wilson), in percent."""
        return wilson(self.correct, self.total)

    def as_data(self) -> dict[str, int | float]:
        """As JSON; the accuracy has four decimals, as the original prints it."""
        return {"correct": self.correct, "total": self.total, "accuracy": round(self.accuracy, 4)}


def judge(benchmark: ModuleType, row: Row, response: str, read: Callable[[str], str] | None = None) -> Verdict:
    """The verdict on one response. `read` replaces the benchmark's own parser of the letter."""
    letter = (read or benchmark.read)(response)
    counted = row.answer is not None and benchmark.counts(response)
    return Verdict(matches(row, letter), counted, letter in tuple("ABCDE"), row.groups)


def total(verdicts: Iterable[Verdict]) -> Score:
    """The score over all verdicts that count."""
    counted = [verdict for verdict in verdicts if verdict.counted]
    return Score(sum(verdict.correct for verdict in counted), len(counted))


def grouped(verdicts: Iterable[Verdict]) -> dict[str, dict[str, Score]]:
    """Scores by annotation field and value; a row with two task types counts in both."""
    parts: dict[str, dict[str, list[Verdict]]] = {}
    for verdict in verdicts:
        for field, values in verdict.groups.items():
            for value in values:
                parts.setdefault(field, {}).setdefault(value, []).append(verdict)
    return {field: {value: total(part) for value, part in by_value.items()} for field, by_value in parts.items()}
