"""Confidence intervals and tests for counts of correct answers, of one run and of two runs over the same questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

Z = 1.96
"""Standard errors on either side of a 95 % interval."""


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson), in percent; (0, 100) if `total` is 0."""
    if not total:
        return 0.0, 100.0
    rate = right / total
    middle, spread = rate + Z * Z / (2 * total), Z * sqrt(rate * (1 - rate) / total + Z * Z / (4 * total * total))
    low, high = (100 * (middle + side * spread) / (1 + Z * Z / total) for side in (-1, 1))
    return max(low, 0.0), min(high, 100.0)


def paired_difference(only_a: int, only_b: int, total: int) -> tuple[float, float]:
    """The 95 % interval of B's rate minus A's rate over the same questions, in percentage points.

    Wald's interval with half a question added to each of the four outcomes (Agresti and Min, 2005). It assumes
    independent questions.

    Args:
      only_a, only_b: questions that only A, or only B, answered correctly.
      total: all questions.
    """
    count, excess = total + 2, only_b - only_a
    spread = Z * sqrt(only_a + only_b + 1 - excess * excess / count) / count
    return max(100 * (excess / count - spread), -100.0), min(100 * (excess / count + spread), 100.0)


def clustered_difference(differences: Mapping[Any, Sequence[int]]) -> tuple[float, float] | None:
    """The same interval for questions in clusters (videos), within which answers may correlate.

    Computed from the variance of the clusters' sums; too narrow for few clusters.

    Args:
      differences: per cluster, B's score minus A's for each question (−1, 0 or 1).

    Returns:
      None for a single cluster, and if all clusters have the same mean.
    """
    total, clusters = sum(map(len, differences.values())), len(differences)
    if clusters < 2:
        return None
    mean = sum(map(sum, differences.values())) / total
    spread = sum((sum(cluster) - mean * len(cluster)) ** 2 for cluster in differences.values())
    if not spread:
        return None
    error = Z * sqrt(spread * clusters / (clusters - 1)) / total
    return max(100 * (mean - error), -100.0), min(100 * (mean + error), 100.0)


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided p-value of McNemar's exact test.

    The probability, if both runs were equally good, of a split at least this uneven among the questions that only one
    of them answered correctly.
    """
    count, binomial, tail = only_a + only_b, 1, 0
    for fewer in range(min(only_a, only_b) + 1):  # binomial: `count` choose `fewer`
        tail += binomial
        binomial = binomial * (count - fewer) // (fewer + 1)
    return min(1.0, 2 * tail / 2**count)
