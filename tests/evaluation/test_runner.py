"""Runs resume, are divided over workers, and keep to one folder and one set of settings."""

import json
import os
import signal
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import pytest

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import report, run_folder, runner
from vxl2_jax.fleet import pool
from vxl2_jax.fleet.places import Place

from . import standin
from .standin import PARTIAL_RECORD, StandIn, prepared

ROOT = Path(__file__).resolve().parents[2]
VIDEOS = 5


@pytest.fixture
def benchmark(tmp_path):
    """Five videos of 40 to 44 frames with two questions each, of two types."""
    place = tmp_path / "data"
    place.mkdir()
    rows = [
        {
            "video_name": f"{video}.mp4",
            "question": f"What is {number}?\n(A) x\n(B) y",
            "answer": "AB"[number],
            "task_type": ("ego", "count")[number],
            "duration": 40,
        }
        for number in range(2)
        for video in range(VIDEOS)
    ]
    (place / "a.json").write_text(json.dumps(rows))
    for video in range(VIDEOS):
        (place / f"{video}.mp4").write_bytes(b"." * (40 + video))
    return place


def results(out) -> dict:
    """A report without its measured times."""
    return {key: value for key, value in report.summarise(out).items() if key != "time"}


def whole(benchmark, out, **changed) -> dict:
    runner.evaluate(prepared(benchmark, **changed), StandIn, out)
    return results(out)


def test_responses_without_a_correct_answer_are_written_and_not_scored(benchmark, tmp_path):
    rows = json.loads((benchmark / "a.json").read_text())
    for row in rows[:VIDEOS]:
        del row["answer"]
    (benchmark / "a.json").write_text(json.dumps(rows))
    found = whole(benchmark, tmp_path / "out")
    assert (found["unscored"], found["uncounted"], found["accuracy"]["total"]) == (VIDEOS, 0, VIDEOS)
    for row in rows:
        row.pop("answer", None)
    (benchmark / "a.json").write_text(json.dumps(rows))
    found = whole(benchmark, tmp_path / "none")
    assert found["unscored"] == found["questions"] == 2 * VIDEOS
    assert report.as_markdown(report.summarise(tmp_path / "none")).startswith("# mlvu, chunked: not scored\n")
    answers = [row for record in run_folder.read_records(tmp_path / "none").values() for row in record["answers"]]
    assert all(row["response"] and row["correct"] is None for row in answers)


def child(*arguments) -> subprocess.Popen:
    command = [sys.executable, standin.__file__, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_every_question_gets_an_answer_and_every_video_is_watched_once(benchmark, tmp_path):
    model, reported = StandIn(), []
    runner.evaluate(prepared(benchmark), lambda: model, tmp_path / "out", progress=lambda *done: reported.append(done))
    assert model.watched == [f"{video}.mp4" for video in range(VIDEOS)]
    assert reported == [(done, VIDEOS) for done in range(VIDEOS + 1)]
    found = report.summarise(tmp_path / "out")
    assert found["complete"] and found["questions"] == 2 * VIDEOS and not found["failures"]
    rows = [row for record in run_folder.read_records(tmp_path / "out").values() for row in record["answers"]]
    assert [row["response"][0] == row["answer"] for row in rows] == [row["correct"] for row in rows]
    assert all(prompt.endswith("Best option: (") for prompt in model.prompts)


def test_a_run_killed_and_interrupted_in_the_middle_of_a_record_resumes_with_the_same_results(
    benchmark, tmp_path, monkeypatch
):
    out, uninterrupted = tmp_path / "out", whole(benchmark, tmp_path / "uninterrupted")
    process = child(benchmark, out, 2)
    assert process.wait(120) == -signal.SIGKILL, process.stderr.read()
    rows, write, written = out / "rows.0-of-1.jsonl", runner.append, []

    def interrupted(file, record):
        if written:
            file.write(PARTIAL_RECORD)
            raise KeyboardInterrupt
        written.append(write(file, record))

    assert rows.read_text().endswith(PARTIAL_RECORD)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "append", interrupted)
        runner.evaluate(prepared(benchmark), StandIn, out)
    assert rows.read_text().endswith(PARTIAL_RECORD)
    model = StandIn()
    runner.evaluate(prepared(benchmark), lambda: model, out)
    assert model.watched == ["3.mp4", "4.mp4"] and results(out) == uninterrupted


def test_rows_of_an_earlier_version_with_several_processes_count(benchmark, tmp_path):
    out, alone = tmp_path / "out", whole(benchmark, tmp_path / "alone")
    whole(benchmark, out)
    lines = (out / "rows.0-of-1.jsonl").read_text().splitlines(keepends=True)
    (out / "rows.0-of-1.jsonl").unlink()
    (out / "rows.0-of-2.jsonl").write_text("".join(lines[::2]))
    (out / "rows.1-of-2.jsonl").write_text(lines[1])
    model = StandIn()
    runner.evaluate(prepared(benchmark), lambda: model, out)
    assert model.watched == ["3.mp4"] and results(out) == alone


def test_a_run_says_what_its_fleet_did_apart_from_the_report(benchmark, tmp_path):
    did = runner.evaluate(prepared(benchmark), StandIn, tmp_path / "out")
    assert did["videos"] == did["workers"]["here"]["videos"] == VIDEOS and did["retries"] == 0
    assert [json.loads(line) for line in (tmp_path / "out" / "fleet.jsonl").read_text().splitlines()] == [did]
    assert runner.evaluate(prepared(benchmark), StandIn, tmp_path / "out") is None


def test_a_pool_gives_the_report_of_one_process(benchmark, tmp_path):
    (benchmark / "1.mp4").write_bytes(b"broken")
    (benchmark / "3.mp4").unlink()
    alone = whole(benchmark, tmp_path / "alone")
    two = [Place("a"), Place("b")]
    runner.evaluate(prepared(benchmark), standin.StandIn, tmp_path / "out", fleet=partial(pool.run, places=two))
    assert results(tmp_path / "out") == alone


def test_a_finished_run_loads_no_model_and_changes_nothing(benchmark, tmp_path):
    before = whole(benchmark, tmp_path / "out")
    bytes_before = (tmp_path / "out" / "rows.0-of-1.jsonl").read_bytes()
    runner.evaluate(prepared(benchmark), lambda: pytest.fail("the model was loaded"), tmp_path / "out")
    assert (tmp_path / "out" / "rows.0-of-1.jsonl").read_bytes() == bytes_before and results(tmp_path / "out") == before


def test_missing_and_broken_videos_are_counted_stop_nothing_and_are_retried(benchmark, tmp_path):
    out = tmp_path / "out"
    (benchmark / "1.mp4").write_bytes(b"broken")
    (benchmark / "3.mp4").unlink()
    found = whole(benchmark, out)
    assert found["complete"] and found["videos"] == 3 and found["accuracy"]["total"] == 6
    assert [failure["video"] for failure in found["failures"]] == ["1.mp4", "3.mp4"]
    assert "cannot be read" in found["failures"][0]["error"] and "no such video" in found["failures"][1]["error"]
    for video in (1, 3):
        (benchmark / f"{video}.mp4").write_bytes(b"." * (40 + video))
    fixed = whole(benchmark, out)
    assert not fixed["failures"] and fixed == whole(benchmark, tmp_path / "never")


def test_a_video_that_stays_missing_is_recorded_once(benchmark, tmp_path):
    (benchmark / "3.mp4").unlink()
    whole(benchmark, tmp_path / "out")
    size = (tmp_path / "out" / "rows.0-of-1.jsonl").stat().st_size
    whole(benchmark, tmp_path / "out")
    assert (tmp_path / "out" / "rows.0-of-1.jsonl").stat().st_size == size


def test_other_settings_in_the_same_folder_are_refused_and_named(benchmark, tmp_path):
    out = tmp_path / "out"
    whole(benchmark, out)
    with pytest.raises(
        RequestError, match=r"other settings: mode chunked \(now dense\), prev_blocks 3 \(now none\); choose"
    ):
        runner.evaluate(prepared(benchmark, "dense"), StandIn, out)
    with pytest.raises(RequestError, match=r"other settings: max_frames 256 \(now 8\), max_new_tokens 16 \(now 4\);"):
        runner.evaluate(prepared(benchmark, max_frames=8, max_new_tokens=4), StandIn, out)
    with pytest.raises(RequestError, match=r"other settings: cache wide \(now int8\);"):
        runner.evaluate(prepared(benchmark, cache="int8"), StandIn, out)
    rows = json.loads((benchmark / "a.json").read_text())
    (benchmark / "a.json").write_text(json.dumps([*rows[:-1], rows[-1] | {"answer": "A"}]))
    with pytest.raises(RequestError, match="other settings: annotations"):
        runner.evaluate(prepared(benchmark), StandIn, out)


def test_a_run_of_a_version_without_an_option_was_made_with_its_default(benchmark, tmp_path):
    out = tmp_path / "out"
    whole(benchmark, out)
    run = json.loads((out / "run.json").read_text())
    del run["settings"]["watch"]["cache"]
    (out / "run.json").write_text(json.dumps(run))
    whole(benchmark, out)
    with pytest.raises(RequestError, match=r"other settings: cache wide \(now int8\);"):
        runner.evaluate(prepared(benchmark, cache="int8"), StandIn, out)


def test_another_model_in_the_same_folder_is_refused(benchmark, tmp_path, monkeypatch):
    (benchmark / "1.mp4").write_bytes(b"broken")  # something is left to do
    whole(benchmark, tmp_path / "out")
    monkeypatch.setattr(StandIn, "fingerprint", "4567")
    with pytest.raises(RequestError, match=r"model_hash 0123 \(now 4567\)"):
        runner.evaluate(prepared(benchmark), StandIn, tmp_path / "out")


def test_two_runs_cannot_write_one_file(benchmark, tmp_path):
    whole(benchmark, tmp_path / "out")
    with (
        run_folder.open_records(tmp_path / "out"),
        pytest.raises(RequestError, match="another process is writing it"),
    ):
        whole(benchmark, tmp_path / "out")


@pytest.mark.parametrize("content", [b"my notes\n", b"my notes", b'{"a": 1}\n', b"\xff\xd8"])
def test_files_of_something_else_are_refused_and_left_alone(benchmark, tmp_path, content):
    out = tmp_path / "out"
    whole(benchmark, out)
    for name in ("rows.0-of-1.jsonl", "rows.1-of-2.jsonl"):
        kept = (out / "rows.0-of-1.jsonl").read_bytes()
        (out / name).write_bytes(content)
        if name.startswith("rows.0") or content.endswith(b"\n"):
            with pytest.raises(RequestError, match=f"{name}, line 1: not a row of a run"):
                whole(benchmark, out)
        assert (out / name).read_bytes() == content
        (out / "rows.0-of-1.jsonl").write_bytes(kept)


def test_no_memory_is_kept_while_the_next_video_is_watched(benchmark, tmp_path, monkeypatch):
    seen, plain = [], StandIn.answer_all

    def answer_all(model, jobs, **options):
        for done in plain(model, jobs, **options):
            seen.append(weakref.ref(done))
            held = [done]
            del done
            yield held.pop()
            assert seen[-1]() is None

    monkeypatch.setattr(StandIn, "answer_all", answer_all)
    whole(benchmark, tmp_path / "out")
    assert len(seen) == VIDEOS


def test_rows_without_their_run_are_refused(benchmark, tmp_path):
    (tmp_path / "rows.0-of-1.jsonl").write_text("precious")
    with pytest.raises(RequestError, match="holds rows of a run, but no run.json"):
        whole(benchmark, tmp_path)
    assert (tmp_path / "rows.0-of-1.jsonl").read_text() == "precious"


def test_a_question_that_cannot_be_asked_is_counted_and_the_others_of_its_video_are_answered(
    benchmark, tmp_path, monkeypatch
):
    usual = StandIn._answer

    def answer(model, text, length):
        return RequestError("too long: shorten it") if "What is 1" in text else usual(model, text, length)

    monkeypatch.setattr(StandIn, "_answer", answer)
    found = whole(benchmark, tmp_path / "out")
    assert (
        found["complete"] and found["videos"] == VIDEOS and found["questions"] == found["accuracy"]["total"] == VIDEOS
    )
    reasons = {(one["video"], one["error"]) for one in found["failed_questions"]}
    assert reasons == {(f"{video}.mp4", "too long: shorten it") for video in range(VIDEOS)}
    assert "What is 1" in found["failed_questions"][0]["question"]
    assert "too long" in report.as_markdown(report.summarise(tmp_path / "out"))
    runner.evaluate(prepared(benchmark), lambda: pytest.fail("the model was loaded"), tmp_path / "out")


@pytest.mark.parametrize("name", run_folder.REPORT_FILES)
def test_that_reports_can_be_written_is_checked_before_the_run(benchmark, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(RequestError, match=name):
        runner.evaluate(prepared(benchmark), lambda: pytest.fail("the model was loaded"), tmp_path / "out")
