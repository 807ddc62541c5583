"""Which chunks are dense."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxl2_jax import select
from vxl2_jax.errors import RequestError

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
    dense = select.dense_chunks(chunks, select.chunks_of_units(units, chunks, chunk_size))
    assert np.flatnonzero(dense).tolist() == blocks


def test_units_past_the_end_choose_nothing_but_are_not_an_empty_list():
    assert select.chunks_of_units([], 5, 4) is None
    assert select.chunks_of_units([99, 100], 5, 4).tolist() == []


def test_units_may_share_a_chunk():
    assert select.chunks_of_units([0, 1, 2, 3, 6], 4, 4).tolist() == [1, 2, 4]


@given(st.integers(1, 20), st.lists(st.integers(1, 20)))
def test_prefix_first_and_last_are_always_dense(chunks, chosen):
    chosen = [chunk for chunk in chosen if chunk <= chunks]
    dense = select.dense_chunks(chunks, np.asarray(chosen, int))
    assert set(np.flatnonzero(dense)) == {0, 1, chunks, *chosen}
    assert select.dense_chunks(chunks, None).all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 20))
def test_top_chunks_are_the_best_interior_ones_in_time_order(scores, top_k):
    found = select.top_chunks(np.asarray(scores, float), top_k).tolist()
    interior = list(range(2, len(scores)))
    assert found == sorted(found) and set(found) <= set(interior)
    assert len(found) == min(top_k, len(interior))
    left_out = [scores[c - 1] for c in interior if c not in found]
    assert all(scores[c - 1] >= other for c in found for other in left_out)


def test_ties_go_to_the_earlier_chunk():
    assert select.top_chunks(np.asarray([1.0, 0.5, 0.5, 0.5, 1.0]), 2).tolist() == [2, 3]


def test_oracle_files_of_the_original_are_read(tmp_path):
    path = tmp_path / "oracle.json"
    path.write_text(json.dumps({
        "plotQA": {
            "config": {"selected_topk": None, "selected_chunk_size": 6, "compression": 4},
            "selected_unit_indices": {"a.mp4_What?": [3, 1], "b.mp4_Who?": [], "c.mp4_Why?": None},
        },
        "count": None,
    }))
    found = select.read_oracle(path)
    assert found["a.mp4_What?"] == select.OracleChoice((3, 1), 6, 4)
    assert found["b.mp4_Who?"].units == () and found["c.mp4_Why?"].units is None
    assert len(found) == 3, "a null category holds no keys"


@pytest.mark.parametrize("text", [None, "", "[1]", '{"a": {"config": {}}}', '{"a": 3}', '{"a": {"selected_unit_indices": {"k": 4}}}'])
def test_other_files_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "oracle.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RequestError) as caught:
        select.read_oracle(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
