"""Intervals and tests for counts of right answers, of one run and of two runs over the same questions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import sqrt

Z = 1.96
"""Of 95 % intervals."""


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson), in percent; all of it for nothing."""
    if not total:
        return 0.0, 100.0
    rate = right / total
    middle, spread = rate + Z * Z / (2 * total), Z * sqrt(rate * (1 - rate) / total + Z * Z / (4 * total * total))
    low, high = (100 * (middle + side * spread) / (1 + Z * Z / total) for side in (-1, 1))
    return max(low, 0.0), min(high, 100.0)


def paired_difference(only_a: int, only_b: int, total: int) -> tuple[float, float]:
    """The 95 % interval of B's rate less A's over the same `total` questions, in percentage points.

    only_a, only_b: questions that only A, or only B, got right. Wald's interval with half a question added to each of
    the four kinds (Agresti and Min, 2005). It takes the questions for independent of each other.
    """
    count, more = total + 2, only_b - only_a
    spread = Z * sqrt(only_a + only_b + 1 - more * more / count) / count
    return max(100 * (more / count - spread), -100.0), min(100 * (more / count + spread), 100.0)


def clustered_difference(differences: Mapping[Hashable, Sequence[int]]) -> tuple[float, float] | None:
    """The same interval for questions that come in clusters (videos), within which they may be alike.

    differences: per cluster, B's score less A's at each question (−1, 0, 1). By the spread of the clusters' sums; too
    narrow where there are few of them. None for a single one, and where all clusters are alike.
    """
    total, clusters = sum(map(len, differences.values())), len(differences)
    if clusters < 2:
        return None
    mean = sum(map(sum, differences.values())) / total
    spread = sum((sum(each) - mean * len(each)) ** 2 for each in differences.values())
    if not spread:
        return None
    error = Z * sqrt(spread * clusters / (clusters - 1)) / total
    return max(100 * (mean - error), -100.0), min(100 * (mean + error), 100.0)


def mcnemar(only_a: int, only_b: int) -> float:
    """The p-value of McNemar's exact test, two-sided: were both runs alike, how often would the questions that only one
    got right be shared out at least this unevenly?"""
    count, ways, tail = only_a + only_b, 1, 0
    for fewer in range(min(only_a, only_b) + 1):  # ways: to pick so many of all
        tail += ways
        ways = ways * (count - fewer) // (fewer + 1)
    return min(1.0, 2 * tail / 2**count)
