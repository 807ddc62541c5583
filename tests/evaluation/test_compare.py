"""Comparison of two runs, question by question: differences, intervals, the test, and unpaired questions."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import compare, intervals

from .test_report import record, run


def sides(tmp_path, a, b, **settings):
    return [compare.read(run(tmp_path / name, *records, **settings)) for name, records in (("a", a), ("b", b))]


def test_differences_are_paired_by_question(tmp_path):
    a = [record(0, ("A", "A"), ("B", "C"), ("A", "B")), record(1, ("A", "A"))]
    b = [record(1, ("A", "B")), record(0, ("A", "A"), ("B", "B"), ("A", "A"))]
    found = compare.compare(*sides(tmp_path, a, b))
    assert (found["questions"], found["only_a_right"], found["only_b_right"], found["points"]) == (4, 1, 2, 25.0)
    assert found["p"] == 1.0 and found["interval"][0] < 25 < found["interval"][1]
    assert (
        found["by"]["duration"]["short"]["points"] == pytest.approx(66.67)
        and found["by"]["duration"]["long"]["points"] == -100
    )
    assert found["a"]["accuracy"]["correct"] == 2 and found["b"]["accuracy"]["correct"] == 3
    assert found["settings_that_differ"] == {} and not any(found["unpaired"].values())


def test_questions_not_in_both_are_left_out_and_listed(tmp_path):
    gone = {"index": 1, "video": "v1", "error": "gone"}
    a = [record(0, ("A", "A"), ("B", "B"), benchmark="lvbench"), record(1, ("A", "A"), benchmark="lvbench")]
    b = [record(0, ("A", "A"), ("B", ""), benchmark="lvbench"), gone, record(2, ("A", "A"), benchmark="lvbench")]
    found = compare.compare(*sides(tmp_path, a, b, benchmark="lvbench"))
    assert found["questions"] == 1 and found["a"]["accuracy"]["total"] == 1
    out = {reason: [one["video"] for one in rows] for reason, rows in found["unpaired"].items()}
    assert out == {"only_in_a": ["v1"], "only_in_b": ["v2"], "not_counted": ["v0"]}
    text = compare.as_markdown(found)
    assert "1 questions were left out, asked only in A" in text and "without a score in A or B" in text


def test_settings_that_differ_are_listed(tmp_path):
    places = [run(tmp_path / mode, record(0, ("A", "A")), mode=mode) for mode in ("dense", "chunked")]
    found = compare.compare(*map(compare.read, places))
    assert found["settings_that_differ"] == {
        "mode": ["dense", "chunked"],
        "max_frames": [400, 300],
        "prev_blocks": [None, 3],
    }


def test_a_file_of_rows_is_enough_and_a_comparison_is_written(tmp_path):
    a, b = sides(tmp_path, [record(0, ("A", "A"), ("B", "A"))], [record(0, ("A", "A"), ("B", "B"))])
    bare = compare.read(tmp_path / "a" / "rows.0-of-1.jsonl")
    found = compare.compare(bare, b)
    assert found["points"] == compare.compare(a, b)["points"] == 50.0
    compare.write(tmp_path / "out", found)
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == found
    assert "+50.00 points" in (tmp_path / "out" / "compare.md").read_text()
    with pytest.raises(RequestError, match="compare.md: cannot be"):
        compare.write(tmp_path / "out" / "compare.md", found)


def test_runs_without_a_common_question_are_refused(tmp_path):
    a, b = sides(tmp_path, [record(0, ("A", "A"))], [record(1, ("A", "A"))])
    with pytest.raises(RequestError, match="no question in common"):
        compare.compare(a, b)
    other = run(tmp_path / "c", record(0, ("A", "A"), benchmark="lvbench"), benchmark="lvbench")
    with pytest.raises(RequestError, match="different benchmarks, lvbench and video_mme"):
        compare.compare(a, compare.read(other))
    with pytest.raises(RequestError, match="no such file"):
        compare.read(tmp_path / "nothing.jsonl")


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemars_test_is_the_binomial_one(only_a, only_b):
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert intervals.mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_mcnemars_test_takes_many_discordant_questions():
    assert intervals.mcnemar(5000, 5000) == 1.0 and 0 < intervals.mcnemar(2300, 2700) < 1e-7


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 300))
def test_the_paired_interval_mirrors_and_stays_in_range(only_a, only_b, more):
    total = only_a + only_b + more
    low, high = intervals.paired_difference(only_a, only_b, total)
    assert -100 <= low < high <= 100
    assert intervals.paired_difference(only_b, only_a, total) == pytest.approx((-high, -low))


@pytest.mark.parametrize("rates, questions", [((0.1, 0.2), 60), ((0.02, 0.05), 200), ((0.3, 0.3), 30)])
def test_the_paired_interval_covers_the_truth_at_its_nominal_rate(rates, questions):
    rng = np.random.default_rng(0)
    truth = 100 * (rates[1] - rates[0])
    drawn = rng.multinomial(questions, [*rates, 1 - sum(rates)], size=2000)
    bounds = [intervals.paired_difference(int(a), int(b), questions) for a, b, _ in drawn]
    covered = np.mean([low <= truth <= high for low, high in bounds])
    assert 0.935 < covered < 0.985


def test_the_interval_by_video_widens_where_a_videos_questions_go_together():
    rng = np.random.default_rng(1)
    together = {video: [int(step)] * 8 for video, step in enumerate(rng.integers(-1, 2, 60))}
    steps = [step for each in together.values() for step in each]
    apart = {number: [step] for number, step in enumerate(steps)}

    def width(bounds):
        return bounds[1] - bounds[0]

    plain = intervals.paired_difference(steps.count(-1), steps.count(1), len(steps))
    assert width(intervals.clustered_difference(apart)) == pytest.approx(width(plain), rel=0.02)
    assert width(intervals.clustered_difference(together)) == pytest.approx(8**0.5 * width(plain), rel=0.05)
    assert intervals.clustered_difference({"a": [1, 0]}) is None
