"""Which chunks are dense."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxl2_jax.relevance import selection

# (selected units, groups, chunk size) → dense blocks: the original's, from bilevel.npz.
GOLDEN = [
    ([], 10, 4, [0, 1, 2, 3]),
    ([2], 10, 2, [0, 1, 3, 5]),
    ([0, 3], 10, 3, [0, 1, 3, 4]),
    ([4, 1, 9], 10, 4, [0, 1, 3]),
    ([1], 7, 2, [0, 1, 2, 4]),
    ([0], 7, 2, [0, 1, 4]),
    ([0, 2], 7, 1, [0, 1, 5, 7]),
    ([], 7, 2, [0, 1, 2, 3, 4]),
]


@pytest.mark.parametrize("units, groups, chunk_size, blocks", GOLDEN)
def test_units_make_the_originals_blocks_dense(units, groups, chunk_size, blocks):
    chunks = -(-groups // chunk_size)
    dense = selection.dense_chunks(chunks, selection.chunks_of_units(units, chunks, chunk_size))
    assert np.flatnonzero(dense).tolist() == blocks


def test_units_past_the_end_choose_nothing_but_are_not_an_empty_list():
    assert selection.chunks_of_units([], 5, 4) is None
    assert selection.chunks_of_units([99, 100], 5, 4).tolist() == []


def test_units_may_share_a_chunk():
    assert selection.chunks_of_units([0, 1, 2, 3, 6], 4, 4).tolist() == [1, 2, 4]


@given(st.integers(1, 20), st.lists(st.integers(1, 20)))
def test_prefix_first_and_last_are_always_dense(chunks, chosen):
    chosen = [chunk for chunk in chosen if chunk <= chunks]
    dense = selection.dense_chunks(chunks, np.asarray(chosen, int))
    assert set(np.flatnonzero(dense)) == {0, 1, chunks, *chosen}
    assert selection.dense_chunks(chunks, None).all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 20))
def test_top_chunks_are_the_best_interior_ones_in_time_order(scores, top_k):
    found = selection.top_chunks(np.asarray(scores, float), top_k).tolist()
    interior = list(range(2, len(scores)))
    assert found == sorted(found) and set(found) <= set(interior)
    assert len(found) == min(top_k, len(interior))
    left_out = [scores[c - 1] for c in interior if c not in found]
    assert all(scores[c - 1] >= other for c in found for other in left_out)


def test_ties_go_to_the_earlier_chunk():
    assert selection.top_chunks(np.asarray([1.0, 0.5, 0.5, 0.5, 1.0]), 2).tolist() == [2, 3]
