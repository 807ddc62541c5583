"""Round lengths up to few distinct values, so that one executable serves many videos and questions."""

from __future__ import annotations


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `n`."""
    return -(-n // multiple) * multiple


def bucket(n: int, least: int = 1) -> int:
    """The smallest number ≥ max(n, least) with four significant bits: at most an eighth is wasted."""
    n = max(n, least)
    step = 1 << max(n.bit_length() - 4, 0)
    return round_up(n, step)
