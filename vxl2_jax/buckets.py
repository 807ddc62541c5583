"""Round lengths up to a few distinct values, so that one executable serves many videos and questions."""

from __future__ import annotations


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `n`."""
    return -(-n // multiple) * multiple


def bucket(n: int, minimum: int = 1) -> int:
    """The smallest number with four significant bits that is at least `n` and `minimum`; wastes at most one eighth."""
    n = max(n, minimum)
    return round_up(n, 1 << max(n.bit_length() - 4, 0))
