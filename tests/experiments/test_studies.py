"""The runner of studies resumes, and the committed results are those of the studies."""

import json
from pathlib import Path

import pytest

import vxl2_jax as vxl2
from experiments.studies import (
    block_size,
    bursty,
    cost,
    evidence,
    halves,
    needle_report,
    question_types,
    relevance,
    runner,
    scene_changes,
    selection,
)
from experiments.studies.__main__ import STUDIES, build_parser, main
from vxl2_jax.storage import locking

EXPERIMENTS = Path(cost.__file__).parents[1]
RESULTS = EXPERIMENTS / "results"
OPEN = (block_size, selection, halves, question_types, bursty, scene_changes, evidence)
ABOUT = {"study": "mini", "seed": 0}


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def test_a_run_resumes_where_it_was_interrupted(tmp_path):
    made = []

    def answer(item):
        made.append(item)
        return {"value": item}

    def values(count):
        found = runner.run(tmp_path, ABOUT, {str(i): i for i in range(count)}, answer)
        return [found[str(i)]["value"] for i in range(count)]

    assert values(2) == [0, 1] and made == [0, 1]
    path = runner.records_path(tmp_path, ABOUT)
    whole = path.read_bytes()
    for end in range(len(whole) + 1):  # killed at any moment
        path.write_bytes(whole[:end])
        assert values(2) == [0, 1]
    made.clear()
    assert values(3) == [0, 1, 2] and made == [2]
    assert values(1) == [0] and made == [2]


def test_other_settings_have_other_records(tmp_path):
    for seed in (0, 1):
        runner.run(tmp_path, ABOUT | {"seed": seed}, {"0": seed}, lambda item: {"value": item})
    assert len(list(tmp_path.iterdir())) == 2


def test_a_video_that_cannot_be_watched_is_tried_again(tmp_path):
    def broken(item):
        raise vxl2.VideoError("film.mp4: cannot be read")

    with pytest.raises(vxl2.RequestError, match="1 of 1 .*0: film.mp4: cannot be read"):
        runner.run(tmp_path, ABOUT, {"0": 0}, broken)
    found = runner.run(tmp_path, ABOUT, {"0": 0}, broken, keep_failures=True)
    assert found["0"]["error"] == "film.mp4: cannot be read"
    assert runner.run(tmp_path, ABOUT, {"0": 0}, lambda item: {"value": 1})["0"]["value"] == 1


@pytest.mark.parametrize("text", ["a diary\n", '{"other": 1}\n', '{"study": "mini", "seed": 0}\n[]\n'])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path, text):
    path = runner.records_path(tmp_path, ABOUT)
    path.write_text(text)
    with pytest.raises(vxl2.RequestError, match="choose another --records"):
        runner.run(tmp_path, ABOUT, {"0": 0}, lambda item: {})
    assert path.read_text() == text


def test_records_have_one_writer(tmp_path):
    path = runner.records_path(tmp_path, ABOUT)
    with locking.open_locked(path), pytest.raises(vxl2.RequestError, match="another process"):
        runner.run(tmp_path, ABOUT, {"0": 0}, lambda item: {})


@pytest.mark.parametrize("study", OPEN, ids=lambda study: study.QUESTION.name)
def test_committed_reports_of_open_questions_are_of_the_same_settings_and_can_be_drawn(study, tmp_path):
    question, report = study.QUESTION, read(f"open_questions/{study.QUESTION.name}")
    assert report["title"] == question.title and set(question.contents) <= set(report["marks"])
    assert all(list(marks) == list(question.settings) for marks in report["marks"].values())
    question.draw(tmp_path / "plot.png", report=report)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1


def test_other_committed_reports_can_be_drawn(tmp_path):
    cost.draw(tmp_path / "cost.png", read("open_questions/cost"))
    relevance.draw(tmp_path / "relevance.png", read("relevance/scorers"), "title")
    needle_report.draw(tmp_path / "needles.png", read("needles/grid"), "title")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_help_has_a_line_for_every_study(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in STUDIES)
    for name in STUDIES:
        with pytest.raises(SystemExit) as end:
            build_parser().parse_args([name, "--help"])
        assert end.value.code == 0


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["nano", "--shares", "62:1"], "--shares"),
        (["relevance", "--scorers", "guess"], "--scorers"),
        (["needles", "--modes", "sparse"], "--modes"),
        (["needles", "--lengths", "8"], "too short"),
    ],
)
def test_bad_flags_are_refused_before_any_work(arguments, named, tmp_path, monkeypatch):
    monkeypatch.setattr(vxl2, "load", lambda *_: pytest.fail("the model is loaded"))
    with pytest.raises(vxl2.RequestError, match=named):
        main([*arguments, "--out", str(tmp_path / "out"), "--records", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_the_readme_lists_every_script_and_study_and_a_page_shows_every_open_question():
    text = (EXPERIMENTS / "README.md").read_text()
    scripts = [script.name for script in EXPERIMENTS.glob("*.py") if script.name not in ("__init__.py", "start.py")]
    assert [script for script in scripts if f"| [{script}]({script}) |" not in text] == []
    assert [name for name in STUDIES if f"`{name}`" not in text] == []
    page = (EXPERIMENTS.parent / "docs" / "results" / "studies.md").read_text()
    for plot in (EXPERIMENTS / "results" / "open_questions").glob("*.png"):
        assert f"Study `{plot.stem}`" in page and f"/results/open_questions/{plot.name})" in page
