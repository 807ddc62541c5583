"""Judged answers and their statistics: which chunks hold the evidence, how they are ranked, and what is counted."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.studies import judging, relevance, statistics
from experiments.studies.judging import Asked
from experiments.synthetic import questions
from vxl2_jax.relevance import selection


@pytest.mark.parametrize("span, size, chunks, wanted", [
    ((4.0, 12.0), 1, 16, [2, 3]),  # whole groups of four seconds
    ((3.2, 12.1), 1, 16, [2, 3, 4]),  # frames 4 … 12: the fourth chunk shows it once
    ((5.5, 13.5), 1, 16, [3, 2, 4]),  # the chunk that shows it longest comes first
    ((4.0, 12.0), 2, 8, [1, 2]),
    ((60.0, 66.0), 1, 16, [16]),  # what continues after the last group belongs to it
])  # fmt: skip
def test_an_event_lies_in_the_chunks_with_a_frame_of_it(span, size, chunks, wanted):
    assert questions.chunks_of(span, size, chunks) == wanted


def test_events_that_touch_an_end_need_not_be_found():
    assert questions.inside([[2, 3], [1, 2], [7, 8], [4]], 8) == [[2, 3], [4]]


@given(st.lists(st.integers(0, 5), min_size=3, max_size=12), st.integers(1, 12))
def test_ranks_are_those_that_are_chosen(scores, top_k):
    placed = judging.ranks(np.asarray(scores, float))
    chosen = [chunk for chunk, rank in enumerate(placed, 1) if 0 < rank <= top_k]
    assert chosen == selection.top_chunks(np.asarray(scores, float), top_k).tolist()


def test_known_evidence_takes_the_best_chunk_of_every_event_first():
    placed = judging.ranks(judging.known([[3, 2], [6, 7, 5]], np.zeros(10)))
    assert [int(np.flatnonzero(placed == rank)[0]) + 1 for rank in range(1, 6)] == [3, 6, 2, 7, 5]
    assert judging.known([], np.zeros(4)).tolist() == [0, 0, 0, 0]


def asked_about(*spans) -> Asked:
    return Asked("one", questions.Question("Is there a dog?", "yes", "exists", 0.5, evidence=spans))


def answer(scores, dense, text="yes"):
    chunks = [SimpleNamespace(score=score, dense=index in dense) for index, score in enumerate(scores)]
    return SimpleNamespace(text=text, chunks=chunks, cache_tokens=5, cache_tokens_dense=10)


def test_an_answer_is_judged_by_its_text_and_the_chunks_of_its_evidence():
    asked = [asked_about((8.0, 16.0), (24.0, 28.0)), asked_about((0.0, 8.0)), asked_about()]
    scores = [9, 1, 3, 2, 0, 0, 4, 9]
    found = judging.judge(asked, [answer(scores, (0, 2, 7)), answer(scores, (0, 7), "no"), answer(scores, ())], 1)
    assert found["right"] == [1, 0, 1] and found["said"] == ["yes", "no", "yes"]
    assert found["ranks"] == [[2, 1], [], []]  # the best of chunks 3 and 4; chunk 7
    assert found["inside"] == [1, 0, 0] and found["held"] == [0, 1, None]
    assert (found["loaded"], found["dense"]) == (15, 30)


def record(**settings) -> dict:
    """A clip with three questions; setting → right."""
    return {
        "asked": [["a", "", ""], ["a", "", ""], ["b", "", ""]],
        "settings": {name: {"right": right, "inside": [0, 1, 1]} for name, right in settings.items()},
    }


def test_accuracies_and_changes_are_those_of_the_same_questions():
    records = {"0": record(x=[1, 1, 0], y=[1, 0, 0]), "1": record(x=[1, 1, 0], y=[0, 0, 1])}

    def right(name, **chosen):
        return statistics.values(records, name, **chosen)

    assert statistics.rate(statistics.flat(right("x"))) == {"accuracy": 66.7, "interval": [30.0, 90.3], "questions": 6}
    assert statistics.rate(statistics.flat(right("x", label="a")))["interval"] == [51.0, 100.0]  # 4 of 4
    assert right("y", inside=True) == {"0": [0, 0], "1": [0, 1]}
    found = statistics.change(right("x"), right("y"), 2)
    assert (found["points"], found["lost"], found["won"], found["questions"]) == (-33.33, 3, 1, 6)
    assert statistics.change(right("x", label="b"), right("y", label="b"))["points"] == 50.0
    assert statistics.change(right("x", label="c"), right("y", label="c")) == {"questions": 0}


def test_an_interval_stays_wide_where_no_answer_differs():
    same = {clip: [1] * 10 for clip in range(2)}
    low, high = statistics.change(same, same)["interval"]
    assert low < -1 and high > 1


def test_a_table_has_the_columns_of_all_rows():
    rate = {"accuracy": 50.0, "interval": [40.0, 60.0]}
    text = statistics.table("setting", {"x": {"correct": rate}, "y": {"correct": {"questions": 0}, "more": None}})
    assert text.splitlines() == [
        "| setting | correct | more |",
        "| --- | --: | --: |",
        "| x | 50.0 % (40.0 – 60.0) |  |",
        "| y | – |  |",
    ]


@pytest.fixture
def two_scorers():
    """Two questions: attention finds every event at once, mass never finds the second event of the first question."""
    ranks = {"attention@4": [[1, 1], [1]], "mass@4": [[1, 40], [2]], "dense": [[], []]}
    right = {"attention@4": [1, 1], "mass@4": [0, 1], "dense": [1, 1]}
    settings = {
        name: {
            "right": right[name],
            "ranks": ranks[name],
            "inside": [1, 1],
            "loaded": 50 if "@" in name else 100,
            "dense": 100,
        }
        for name in ranks
    }
    return {"0": {"asked": [["a", "", ""], ["a", "", ""]], "settings": settings}}


def test_recall_counts_events_and_completeness_questions(two_scorers):
    found = relevance.report_of(two_scorers, ["attention", "mass"], [1, 2, 4], [4])

    def percents(name, scorer):
        return [each["percent"] for each in found[name][scorer].values()]

    assert percents("recall", "attention") == [100.0, 100.0, 100.0] and percents("recall", "mass") == [33.3, 66.7, 66.7]
    assert percents("complete", "mass") == [0.0, 50.0, 50.0] and found["complete"]["mass"][1]["of"] == 2
    assert found["accuracy"][4]["mass"]["percent"] == 50.0 and found["accuracy"][4]["attention"]["bytes"] == 50.0
    assert found["against"][4]["mass"]["points"] == 50.0 and "attention" not in found["against"][4]
    assert "+50.0" in relevance.as_markdown(found) and json.dumps(found)
