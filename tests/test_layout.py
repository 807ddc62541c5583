"""The visibility rule, against its direct statement."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxl2_jax.layout import GLOBAL, VISUAL, Layout, PrefillRule, attention_pairs, key_ranges, natural_mask

layouts = st.builds(
    Layout,
    prefix=st.integers(1, 6),
    timestamp_lengths=st.lists(st.integers(1, 5), min_size=1, max_size=9).map(tuple),
    visual=st.integers(1, 12),
)
rules = st.builds(PrefillRule, block_size=st.integers(1, 10), prev_blocks=st.none() | st.integers(0, 12))


def stated(layout: Layout, rule: PrefillRule, question: int) -> np.ndarray:
    """allowed(q, k) = k ≤ q and (q is global, or k is global, or block(q) − block(k) ≤ prev_blocks)."""
    block: list[int | None] = [None] * layout.prefix  # None: global
    for group, length in enumerate(layout.timestamp_lengths):
        block += [None] * length + [group // rule.block_size] * layout.visual
    block += [None] * question

    def allowed(q: int, k: int) -> bool:
        if k > q:
            return False
        far = rule.prev_blocks is not None and block[q] is not None and block[k] is not None
        return not far or block[q] - block[k] <= rule.prev_blocks

    return np.array([[allowed(q, k) for k in range(len(block))] for q in range(len(block))])


@given(layouts, rules, st.integers(0, 4))
def test_mask_is_the_rule_as_stated(layout, rule, question):
    np.testing.assert_array_equal(natural_mask(layout, rule, question), stated(layout, rule, question))


@given(layouts, rules, st.integers(0, 4))
def test_pair_counts_are_those_of_the_mask(layout, rule, question):
    total = layout.length + question
    assert attention_pairs(layout, rule, question) == (
        natural_mask(layout, rule, question).sum(),
        total * (total + 1) // 2,
    )


@given(layouts, rules)
def test_a_window_longer_than_the_video_is_dense(layout, rule):
    wide = PrefillRule(rule.block_size, layout.groups)
    np.testing.assert_array_equal(natural_mask(layout, wide), np.tri(layout.length, dtype=bool))
    np.testing.assert_array_equal(
        natural_mask(layout, PrefillRule(prev_blocks=None)), np.tri(layout.length, dtype=bool)
    )


@given(layouts, st.integers(1, 6))
def test_positions_of_both_streams_cover_the_prompt_once(layout, compression):
    both = np.concatenate([layout.visual_positions(compression), layout.global_positions(compression)])
    assert sorted(both) == list(range(layout.sparse_length(compression)))


@given(layouts, rules, st.sampled_from([VISUAL, GLOBAL]), st.integers(0, 30), st.integers(0, 60))
def test_ranges_of_a_slice_are_a_slice_of_the_ranges(layout, rule, stream, start, count):
    length = layout.visual_length if stream == VISUAL else layout.global_length
    whole, part = (key_ranges(layout, rule, stream, *span) for span in ((0, 200), (start, start + count)))
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[:, start : start + count], b)
    assert not whole[1][:, length:].any(), "queries past the end see nothing"


@given(layouts, st.integers(1, 10))
def test_chunks_count_from_one_and_the_last_may_be_short(layout, chunk_size):
    chunks = layout.chunk_of_group(chunk_size)
    assert chunks[0] == 1 and chunks[-1] == layout.chunks(chunk_size)
    assert (np.bincount(chunks)[1:-1] == chunk_size).all() and 1 <= np.bincount(chunks)[-1] <= chunk_size


def test_pair_counts_of_the_original_at_real_lengths(golden):
    table = json.loads((golden / "prefill_flops.json").read_text())
    assert len(table["rows"]) > 10
    for row in table["rows"]:
        seconds = (round(4 * g * row["seconds_per_frame"], 1) for g in range(row["groups"]))
        layout = Layout(
            row["prefix_tokens"], tuple(len(f"Time {s}s:") - 3 for s in seconds), table["visual_tokens_per_group"]
        )
        pairs = attention_pairs(layout, PrefillRule(row["block_size"], row["prev_blocks"]), row["suffix_tokens"])
        assert pairs == (row["num_allowed"], row["upper_triangle"])


@pytest.mark.parametrize("frames, share", [(2048, 0.17), (10_000, 0.13)])
def test_share_of_pairs_at_lengths_beyond_the_original(frames, share):
    stamps = tuple(len(f"Time {4 * g}.0s:") - 3 for g in range(frames // 4))
    kept, causal = attention_pairs(Layout(14, stamps, 144), PrefillRule(4, 3), 68)
    assert kept / causal == pytest.approx(share, abs=0.006)
