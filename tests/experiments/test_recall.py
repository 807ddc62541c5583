"""The comparison of scorers: which chunks show an event, how they are ranked as they are chosen, and what is counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.studies import recall as compare
from experiments.studies.recall import Judged
from experiments.synthetic import questions
from vxl2_jax.relevance import selection


@pytest.mark.parametrize("span, size, chunks, wanted", [
    ((4.0, 12.0), 1, 16, [2, 3]),  # whole groups of four seconds
    ((3.2, 12.1), 1, 16, [2, 3, 4]),  # frames 4 … 12: the fourth chunk shows it once
    ((5.5, 13.5), 1, 16, [3, 2, 4]),  # the chunk that shows it longest comes first
    ((4.0, 12.0), 2, 8, [1, 2]),
    ((60.0, 66.0), 1, 16, [16]),  # what runs on behind the last group belongs to it
])  # fmt: skip
def test_an_event_lies_in_the_chunks_with_a_frame_of_it(span, size, chunks, wanted):
    assert questions.chunks_of(span, size, chunks) == wanted


def test_events_that_touch_an_end_need_not_be_found():
    assert questions.inside([[2, 3], [1, 2], [7, 8], [4]], 8) == [[2, 3], [4]]


@given(st.lists(st.integers(0, 5), min_size=3, max_size=12), st.integers(1, 12))
def test_ranks_are_those_that_are_chosen(scores, top_k):
    placed = compare.ranks(np.asarray(scores, float))
    chosen = [chunk for chunk, rank in enumerate(placed, 1) if 0 < rank <= top_k]
    assert chosen == selection.top_chunks(np.asarray(scores, float), top_k).tolist()


def test_who_knows_the_evidence_takes_the_best_chunk_of_every_event_first():
    placed = compare.ranks(compare.known([[3, 2], [6, 7, 5]], 10))
    assert [int(np.flatnonzero(placed == rank)[0]) + 1 for rank in range(1, 6)] == [3, 6, 2, 7, 5]
    assert compare.known([], 4).tolist() == [0, 0, 0, 0]


def rows():
    """Two questions by two scorers: the first finds every event at once, the second never finds the first one's second."""
    for number, evidence in enumerate([(1, 4), (2,)]):
        yield Judged("dense", None, number, (), max(evidence), True, 100, 100)
        yield Judged("attention", 4, number, tuple(1 for _ in evidence), 1, True, 50, 100)
        yield Judged("mass", 4, number, evidence if number else (1, 40), 2 if number else 40, bool(number), 50, 100)


def test_recall_counts_events_and_completeness_questions():
    found = compare.report_of(list(rows()), [1, 2, 4], [4])

    def percents(name, scorer):
        return [each["percent"] for each in found[name][scorer].values()]

    assert percents("recall", "attention") == [100.0, 100.0, 100.0] and percents("recall", "mass") == [33.3, 66.7, 66.7]
    assert percents("complete", "mass") == [0.0, 50.0, 50.0] and found["complete"]["mass"][1]["of"] == 2
    assert found["accuracy"][4]["mass"]["percent"] == 50.0 and found["accuracy"][4]["attention"]["bytes"] == 50.0
    assert found["against"][4]["mass"]["points"] == 50.0 and "attention" not in found["against"][4]


def test_the_report_is_told_drawn_and_can_be_stored(tmp_path):
    found = compare.report_of(list(rows()), [1, 2, 4], [4])
    text = compare.as_text(found)
    assert "recall@k" in text and "100.0 (43.8 – 100.0)" in text and "+50.0" in text
    compare.draw(tmp_path / "a.png", found, "title")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["a.png"]
    assert json.loads(json.dumps(found))["recall"]["attention"]["1"]["percent"] == 100.0


def test_nothing_to_find_is_no_share():
    assert (
        compare.rate([]) == {"percent": None, "interval": [0.0, 100.0], "of": 0}
        and compare.told(compare.rate([])) == "none"
    )
