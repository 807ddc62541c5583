"""Replay of the original's oracle files: lookup by key, answers over the right memory, counts in the report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vxl2_jax import evaluation
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import replay, report, run_folder, runner
from vxl2_jax.evaluation.benchmark_run import BenchmarkRun
from vxl2_jax.evaluation.data import BenchmarkVideo
from vxl2_jax.options import AskOptions
from vxl2_jax.relevance import oracle

from .standin import StandIn, prepared

CONFIG = {"selected_topk": 3, "selected_chunk_size": 6, "compression": 2, "relevance oracle": "languagebind"}


class Watcher(StandIn):
    """Notes each watched video, its prev_blocks, and the given units, or top_k without units."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def answer_all(self, jobs, *, watch, ask):
        AskOptions(**ask).check()

        def noted():
            for job in jobs:
                relevance, name = ask["relevance"], Path(job.video).name
                found = isinstance(relevance, oracle.Oracle) and [
                    relevance.choices[f"{name}_{q}"].units for q in job.questions
                ]
                self.seen.append((name, watch["prev_blocks"], found if found else ask["top_k"]))
                yield job

        return super().answer_all(noted(), watch=watch, ask=ask)


@pytest.fixture
def benchmark(tmp_path):
    """Three videos of eleven groups, each with a question of a category with units, of a null one, and of an unlisted one."""
    place = tmp_path / "data"
    place.mkdir()
    rows = [
        {
            "video_name": f"{video}.mp4",
            "question": f"What is {kind}?\n(A) x\n(B) y",
            "answer": "A",
            "task_type": kind,
        }
        for kind in ("ego", "topic", "count")
        for video in range(3)
    ]
    (place / "a.json").write_text(json.dumps(rows))
    for video in range(3):
        (place / f"{video}.mp4").write_bytes(b"." * (41 + video))
    return place


@pytest.fixture
def files(tmp_path):
    """An oracle file of that benchmark: video 0 has two units, video 1 an empty list, video 2 no entry."""
    path = tmp_path / "mlvu.json"
    units = {"0.mp4_What is ego?": [5, 1], "1.mp4_What is ego?": [], "elsewhere.mp4_What?": [3]}
    path.write_text(json.dumps({"topic": None, "ego": {"config": CONFIG, "selected_unit_indices": units}}))
    return path


def run_of(benchmark, path, mode="bilevel") -> BenchmarkRun:
    run = prepared(benchmark, mode, block_size=1, prev_blocks=1)
    return replace(run, ask=run.ask | {"relevance": f"oracle:{path}"})


def test_questions_with_units_are_asked_bilevel_and_the_others_over_a_plain_dense_memory(benchmark, files, tmp_path):
    model = Watcher()
    runner.evaluate(run_of(benchmark, files), lambda: model, tmp_path / "out")
    assert sorted(model.seen, key=str) == sorted([
        ("0.mp4", 1, [(5, 1)]), ("0.mp4", None, None), ("1.mp4", 1, [()]), ("1.mp4", None, None), ("2.mp4", None, None),
    ], key=str)  # fmt: skip


def test_rows_keep_the_order_of_the_questions_and_add_up_both_memories(benchmark, files, tmp_path):
    runner.evaluate(run_of(benchmark, files), Watcher, tmp_path / "out")
    found = list(run_folder.read_records(tmp_path / "out").values())
    asked = [[row["question"].split("?")[0] for row in record["answers"]] for record in found]
    assert asked == [["What is ego", "What is topic", "What is count"]] * 3
    both, plain = found[0], found[2]  # all three videos have as many tokens
    assert plain["attention"]["pairs_kept"] == plain["attention"]["pairs_causal"]
    assert both["attention"]["pairs_causal"] == 2 * plain["attention"]["pairs_causal"]
    assert plain["attention"]["pairs_kept"] < both["attention"]["pairs_kept"] < both["attention"]["pairs_causal"]
    assert both["watching_s"] == {"read": 1.0} and plain["watching_s"] == {"read": 0.5}


def test_the_report_counts_the_entries_and_warns(benchmark, files, tmp_path):
    out = tmp_path / "out"
    runner.evaluate(run_of(benchmark, files), Watcher, out)
    found = report.write(out)
    assert {name: found["oracle"][name] for name in ("chosen", "null category", "no entry")} == {
        "chosen": 2, "null category": 3, "no entry": 4,
    }  # fmt: skip
    assert found["oracle"]["categories"] == [
        {"category": "ego", "chunk_size": 6, "compression": 2, "questions": 2, "most_units": 2}
    ]
    text = (out / "report.md").read_text()
    assert "chosen per category on the test set itself" in text and "| ego | 6 | 2 | 2 | 2 |" in text
    assert "2 questions; 3 have a null category, and 4 have no entry" in text and "relevance" not in found["changed"]


def test_a_run_without_oracle_files_does_not_mention_them(benchmark, tmp_path):
    runner.evaluate(prepared(benchmark, "bilevel"), StandIn, tmp_path / "out")
    found = report.write(tmp_path / "out")
    assert found["oracle"] is None and "racle" not in (tmp_path / "out" / "report.md").read_text()


def test_a_replay_resumes_and_refuses_changed_files(benchmark, files, tmp_path):
    out = tmp_path / "out"
    (benchmark / "1.mp4").write_bytes(b"broken")
    runner.evaluate(run_of(benchmark, files), Watcher, out)
    assert report.summarise(out)["failures"] == [{"video": "1.mp4", "error": "1.mp4: cannot be read"}]
    (benchmark / "1.mp4").write_bytes(b"." * 42)
    model = Watcher()
    runner.evaluate(run_of(benchmark, files), lambda: model, out)
    assert model.watched == ["1.mp4", "1.mp4"] and report.summarise(out)["oracle"]["chosen"] == 2
    files.write_text(files.read_text().replace("[5, 1]", "[5, 2]"))
    with pytest.raises(RequestError, match="other settings: oracle"):
        runner.evaluate(run_of(benchmark, files), pytest.fail, out)


def test_what_cannot_be_replayed_is_refused_before_anything_is_loaded(benchmark, files, tmp_path):
    with pytest.raises(RequestError, match="mode bilevel, not dense"):
        runner.evaluate(run_of(benchmark, files, "dense"), pytest.fail, tmp_path / "out")
    files.write_text('{"other": {"config": null, "selected_unit_indices": {"a.mp4_b": [1]}}}')
    with pytest.raises(RequestError, match="lists none of the questions"):
        runner.evaluate(run_of(benchmark, files), pytest.fail, tmp_path / "out")
    with pytest.raises(RequestError, match="nothing.json: no such file"):
        runner.evaluate(run_of(benchmark, tmp_path / "nothing.json"), pytest.fail, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, key", [
    ("mlvu", "kitchen_3.mp4_Which comes first?"),
    ("video_mme", "k1tch3n.mp4_How many boats pass at 01:10?"),
    ("longvideobench", "boats.mp4_Who waves?"),
    ("lvbench", "b0ats_Who wins?"),
])  # fmt: skip
def test_each_benchmark_is_looked_up_by_its_own_keys(docs, name, key):
    benchmark = evaluation.get_benchmark(name)
    row = benchmark.row(docs[name])
    item = BenchmarkVideo(0, row.video, (row,), Path("videos") / row.files[0])
    found = replay.Replay(oracle.Oracle("", {key: oracle.OracleSelection("a", (1,))}))
    assert found.describe(item, row) == {
        "outcome": "chosen",
        "category": "a",
        "units": 1,
        "chunk_size": None,
        "compression": None,
    }
    other = replay.Replay(
        oracle.Oracle("", {key + "?": oracle.OracleSelection("a", (1,))}, frozenset(row.groups[benchmark.GROUPS[-1]]))
    )
    assert other.describe(item, row) == {"outcome": "null category"} and not other.has_units(item, row)
