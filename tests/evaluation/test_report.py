"""Reports of records: sums, groups, savings, notes; as JSON, Markdown and a plot."""

import json
from pathlib import Path

import pytest

from vxl2_jax import evaluation
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import report, run_folder
from vxl2_jax.evaluation.rows import Row
from vxl2_jax.evaluation.settings import released


def record(index: int, *answers: tuple[str, str], benchmark: str = "video_mme", end_s: float = 90.0, **fields) -> dict:
    """The record of a video; answers are (correct letter, response)."""
    entries = []
    for number, (right, response) in enumerate(answers):
        groups = {"duration": [("short", "long")[index % 2]], "task_type": ["x|y", "when"]}
        verdict = evaluation.judge(evaluation.get_benchmark(benchmark), Row(answer=right, groups={}), response)
        entries.append(
            {
                "key": f"{index}-{number}",
                "id": None,
                "question": "why?",
                "answer": right,
                "response": response,
                "read": "",
                "correct": verdict.correct,
                "counted": verdict.counted,
                "named": verdict.named,
                "groups": groups,
                "cache": {"tokens": 60, "tokens_dense": 100},
            }
        )
    return {
        "index": index,
        "video": f"v{index}",
        "frames": 90,
        "end_s": end_s,
        "tokens": 500,
        "attention": {"pairs_kept": 25, "pairs_causal": 100},
        "watching_s": {"read": 1.0, "vision": 2.0},
        "asking_s": {"decode": 0.5},
        "wall_s": 4.0,
        "executables": 7 + index,
        "answers": entries,
        **fields,
    }


def run(place: Path, *records: dict, benchmark: str = "video_mme", mode: str = "chunked", **changed) -> Path:
    place.mkdir(exist_ok=True)
    watch, ask = released(benchmark, mode)
    settings = {
        "benchmark": benchmark,
        "mode": mode,
        "videos": len(records),
        "questions": 9,
        "subtitles": False,
        "annotations": "0",
        "watch": watch | changed,
        "ask": ask,
    }
    run_folder.claim(place, settings, {"model": "some $model$"})
    (place / "rows.0-of-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    return place


def test_sums_groups_and_savings(tmp_path):
    place = run(
        tmp_path,
        record(1, ("A", "A"), ("B", "C"), end_s=700.0),
        record(0, ("A", "Best option: A"), ("D", "who?")),
        {"index": 2, "video": "v2", "error": "v2: no such video"},
        max_frames=8,
    )
    found = report.summarise(place)
    assert found["complete"] and (found["videos"], found["questions"]) == (2, 4)
    assert found["accuracy"] == {"correct": 1, "total": 4, "accuracy": 25.0, "interval": [4.56, 69.94]}
    assert found["corrected"]["correct"] == 2 and found["unnamed"] == 1 and found["uncounted"] == 0
    assert {value: score["correct"] for value, score in found["by"]["duration"].items()} == {"short": 0, "long": 1}
    assert list(found["by"]["video length"]) == ["up to 2 min", "10 to 30 min"]
    assert found["by"]["task_type"]["when"]["total"] == 4
    assert found["saved"]["attention_percent"] == 75.0 and found["saved"]["cache_percent"] == 40.0
    assert found["changed"] == {"max_frames": [300, 8]} and found["published"] == 66.04
    assert found["time"] == {"wall_s": 8.0, "stages_s": {"read": 2.0, "vision": 4.0, "decode": 1.0}, "executables": 8}
    assert found["failures"] == [{"video": "v2", "error": "v2: no such video"}]


def test_an_answer_counts_rather_than_a_failure_about_the_same_video(tmp_path):
    place = run(tmp_path, {"index": 0, "video": "v0", "error": "gone"}, record(1, ("A", "A")))
    (place / "rows.1-of-2.jsonl").write_text(json.dumps(record(0, ("A", "B"))) + "\n")
    (place / "rows.0-of-1.jsonl").open("a").write(json.dumps({"index": 1, "video": "v1", "error": "gone"}) + "\n")
    found = report.summarise(place)
    assert not found["failures"] and found["accuracy"]["total"] == 2


def test_lvbench_leaves_empty_responses_out_and_counts_them(tmp_path):
    found = report.summarise(run(tmp_path, record(0, ("A", ""), ("B", "B"), benchmark="lvbench"), benchmark="lvbench"))
    assert found["accuracy"]["total"] == 1 and found["uncounted"] == 1 and found["corrected"] is None
    assert any("denominator" in note for note in found["notes"])


def test_a_run_under_way_is_reported_as_such(tmp_path):
    place = run(tmp_path, record(0, ("A", "A")), record(1))
    (place / "rows.0-of-1.jsonl").write_text(json.dumps(record(0, ("A", "A"))) + '\n{"index": 1, "vi')
    found = report.summarise(place)
    assert not found["complete"] and "1 are still to be done" in report.as_markdown(found)


def test_it_is_written_as_json_markdown_and_a_plot(tmp_path):
    place = run(
        tmp_path,
        record(0, ("A", "A"), ("B", "C")),
        record(1, ("A", "B")),
        {"index": 2, "video": "v2", "error": "a | b"},
    )
    found = report.write(place)
    assert json.loads((place / "report.json").read_text()) == found
    assert (place / "report.png").read_bytes().startswith(b"\x89PNG")
    text = (place / "report.md").read_text()
    assert (
        text.startswith("# video_mme, chunked: 33.33 % (")
        and "| x\\|y | 3 | 33.33 % (" in text
        and "| v2 | a \\| b |" in text
    )
    assert sorted(path.name for path in place.iterdir()) == [
        "report.json",
        "report.md",
        "report.png",
        "rows.0-of-1.jsonl",
        "run.json",
    ]


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"settings": 1, "made_with": {}}'])
def test_a_folder_without_a_run_is_named(tmp_path, content):
    if content:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RequestError, match="no run in it"):
        report.summarise(tmp_path)


def test_lengths_have_groups_without_gaps():
    assert [run_folder.length_group(seconds) for seconds in (0, 120, 121, 600, 1800, 3600, 3601)] == [
        "up to 2 min",
        "up to 2 min",
        "2 to 10 min",
        "2 to 10 min",
        "10 to 30 min",
        "30 to 60 min",
        "over an hour",
    ]
    assert run_folder.sort_values("duration_group", ["600", "15", "60"]) == ["15", "60", "600"]
    assert run_folder.sort_values("duration", ["short", "long"]) == ["short", "long"]
