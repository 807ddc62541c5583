"""Sums of verdicts: what counts, in which groups; the recorded runs of the original; the released settings."""

import gzip
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxl2_jax import evaluation
from vxl2_jax.evaluation import Row, Score, records
from vxl2_jax.evaluation.data import ANNOTATION_FILES

NAMES = tuple(evaluation.BENCHMARKS)
OFFICIAL = Path(__file__).resolve().parents[3] / "shared" / "official_runs"


def verdicts_on(name: str, *responses: str, answer: str = "B", **groups: tuple[str, ...]) -> list:
    row = Row(answer=answer, groups=groups)
    return [evaluation.judge(evaluation.get_benchmark(name), row, response) for response in responses]


@pytest.mark.parametrize("name", NAMES)
def test_score_is_the_verdict(name):
    benchmark, row = evaluation.get_benchmark(name), Row(answer="B", groups={})
    assert [benchmark.score(row, response) for response in ("B", "C", "")] == [True, False, False]
    assert [verdict.correct for verdict in verdicts_on(name, "B", "C", "")] == [True, False, False]


@pytest.mark.parametrize("name, counted", [("mlvu", 3), ("video_mme", 3), ("longvideobench", 3), ("lvbench", 2)])
def test_only_lvbench_leaves_empty_responses_out(name, counted):
    assert evaluation.total(verdicts_on(name, "B", "", " ")) == Score(1, counted)


def test_responses_without_a_letter_are_distinguished_from_wrong_ones():
    assert [verdict.named for verdict in verdicts_on("longvideobench", "B", "C", "nobody", "")] == [
        True,
        True,
        False,
        False,
    ]
    assert [verdict.named for verdict in verdicts_on("mlvu", "B) toast", "toast")] == [True, False]


def test_a_row_of_two_types_counts_in_both():
    verdicts = verdicts_on("lvbench", "B", "C", "", question_type=("reasoning", "summary"))
    verdicts += verdicts_on("lvbench", "B", question_type=("reasoning",), type=("tv",))
    assert evaluation.grouped(verdicts) == {
        "question_type": {"reasoning": Score(2, 3), "summary": Score(1, 2)},
        "type": {"tv": Score(1, 1)},
    }
    assert evaluation.total(verdicts) == Score(2, 3)


def test_accuracy_is_in_percent_to_four_places():
    assert Score(124, 283).as_data() == {"correct": 124, "total": 283, "accuracy": 43.8163}
    assert Score(0, 0).as_data() == {"correct": 0, "total": 0, "accuracy": 0.0}


@given(st.integers(1, 400), st.data())
def test_the_interval_holds_the_accuracy_and_stays_in_range(total, data):
    score = Score(data.draw(st.integers(0, total)), total)
    low, high = score.interval
    assert 0 <= low <= score.accuracy + 1e-9 and score.accuracy - 1e-9 <= high <= 100
    closer = Score(4 * score.correct, 4 * total).interval
    assert closer[1] - closer[0] < high - low


def test_the_interval_is_wilsons():
    assert Score(5, 10).interval == pytest.approx((23.66, 76.34), abs=0.01)
    assert Score(0, 0).interval == (0, 100)


def test_released_settings_are_there_for_every_benchmark_and_mode():
    assert set(evaluation.RELEASED) == set(evaluation.MAX_NEW_TOKENS) == set(ANNOTATION_FILES) == set(NAMES)
    for modes in evaluation.RELEASED.values():
        assert list(modes) == ["pure", "chunked", "chunked_bilevel"]
        assert all((mode == "pure") == (s.block_size is None) == (s.prev_blocks is None) for mode, s in modes.items())
    assert evaluation.RELEASED["video_mme"]["chunked"].max_frames == 300
    assert evaluation.MAX_NEW_TOKENS["longvideobench"] == 32


def test_a_run_folder_may_hold_every_benchmark_and_no_other():
    assert [msgspec.convert(name, records.Benchmark) for name in evaluation.BENCHMARKS] == list(evaluation.BENCHMARKS)
    for name in ("mmlu", "mlvu2", ""):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(name, records.Benchmark)


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason=f"the original's recorded runs are not at {OFFICIAL}")
def test_the_recorded_runs_of_the_original_are_reproduced():
    with gzip.open(OFFICIAL / "responses.jsonl.gz", "rt") as file:
        recorded = [json.loads(line) for line in file]
    sums, checked = {}, 0
    for name in sorted({row["benchmark"] for row in recorded}):
        benchmark = evaluation.get_benchmark(name)
        pairs, _ = evaluation.read_responses(benchmark, OFFICIAL / "responses.jsonl.gz")
        verdicts = [evaluation.judge(benchmark, *pair) for pair in pairs]
        own = [row["score"] for row in recorded if row["benchmark"] == name]
        assert [verdict.correct for verdict in verdicts] == own
        checked += len(verdicts)
        by_run = evaluation.grouped(verdicts)["variant/subset"]
        sums |= {f"{name}/{run}": score.as_data() for run, score in by_run.items()}
    assert checked == len(recorded) and sums == json.loads((OFFICIAL / "accuracies.json").read_text())
    for sample in json.loads((OFFICIAL / "prompt_samples.json").read_text()):
        benchmark = evaluation.get_benchmark(sample["benchmark"])
        assert benchmark.prompt(benchmark.row(sample["doc"])) == sample["prompt"]
