"""Strategies of values: texts, numbers, any JSON value, and objects that are nearly valid."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=40),  # also control characters and lone surrogates
    st.sampled_from(
        ["a.mp4", "<|im_end|>", "01:02:05", "\x1b[31m", "\u202e", "\0", "../..", "/dev/zero", "9" * 5000, " "]
    ),
    st.sampled_from(["", "A", "B", "(A) x\n(B) y", "<video>", "<image>", "N/A", "\u2028", "x" * 100_000, "{query}"]),
)
NUMBERS = st.one_of(
    st.integers(-2, 5),
    st.sampled_from([10**18, -(10**18), 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, 1e-308, float("nan"), float("inf")]),
)
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
NUMERALS = st.one_of(
    NUMBERS.map(str), TEXTS, st.sampled_from(["none", "all", "nan", "-inf", "1e18", "0x10", "1_000", "٣"])
)


def mutated(valid: dict[str, Any]) -> st.SearchStrategy:
    """Valid objects, and ones with keys removed, replaced or added, at the top or one level below."""

    def change(drawn: tuple) -> Any:
        changes, removed = drawn
        found = {key: value for key, value in valid.items() if key not in removed}
        return found | {key: value for key, value in changes.items() if key != ""}

    keys = st.sampled_from([*valid, "start", "system_prompt", "answer", "video", "videos", "id"])
    values = ANY | st.sampled_from(list(valid.values()))
    return st.tuples(st.dictionaries(keys, values, max_size=2), st.sets(st.sampled_from(list(valid)), max_size=1)).map(
        change
    )
