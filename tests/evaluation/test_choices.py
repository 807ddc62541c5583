"""Options of a row as plain texts, and runs whose questions are answered by likelihood."""

import dataclasses
import json
from pathlib import Path

import pytest

from vxl2_jax import evaluation
from vxl2_jax.answer import Choice
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import choices, report, run_folder, runner
from vxl2_jax.evaluation.benchmark_run import BenchmarkRun
from vxl2_jax.evaluation.data import BenchmarkVideo
from vxl2_jax.evaluation.rows import Row, letter

from .standin import StandIn, prepared

WANTED = {
    "mlvu": ("Which comes first?", ("The kettle", "The toast")),
    "video_mme": ("How many boats pass at 01:10?", ("Two.", "Three.", "It's four.", "Ünzählig.")),
    "longvideobench": ("Who waves?", ("A rower", "The judge")),
    "lvbench": ("Who wins?", ("Red", "Blue", "Green")),
}


@pytest.mark.parametrize("name", WANTED)
def test_options_lose_their_letters_and_questions_their_options(docs, name):
    assert choices.split_question(evaluation.get_benchmark(name).row(docs[name])) == WANTED[name]


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (("A. x", "C. y"), ("A. x", "C. y")),  # letters that are none of options
        (("A new one", "B"), ("A new one", "B")),
        (("A) x", "B: y"), ("x", "y")),
        (("(A) A. x", "(B) B. y"), ("A. x", "B. y")),
    ],
)
def test_only_letters_in_order_are_removed(options, texts):
    assert choices.split_question(Row(answer="A", groups={}, question="q?", options=options))[1] == texts


@pytest.mark.parametrize("question", ["What?", "What?\n(A) x", "(A) x\n(B) y", "What?\n(A) x\n(B) "])
def test_rows_without_options_are_left_out(question):
    bad, good = (Row(answer="A", groups={}, question=text) for text in (question, "What?\n(A) x\n(B) y"))
    left_out: list[str] = []
    (kept,) = choices.keep_answerable(
        [BenchmarkVideo(0, "a", (bad, good)), BenchmarkVideo(1, "b", (bad,))], left_out.append
    )
    assert kept.rows == (good,) and len(left_out) == 2
    with pytest.raises(RequestError, match="generate"):
        choices.keep_answerable([BenchmarkVideo(1, "b", (bad,))], left_out.append)


class Chooser(StandIn):
    """Finds the longest option the most likely."""

    def answer_all(self, jobs, *, watch, ask):
        for result in super().answer_all(jobs, watch=watch, ask=ask):
            answers = [
                dataclasses.replace(answer, choices=tuple(Choice(text, len(text)) for text in offered))
                for answer, offered in zip(result.answers, result.job.choices, strict=True)
            ]
            yield dataclasses.replace(result, answers=tuple(answers))


@pytest.fixture
def run(tmp_path) -> BenchmarkRun:
    """Two questions about one video, one of which has the longest option correct."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"video_name": "a.mp4", "question": "What is it?\n(A) x\n(B) longer", "answer": answer, "task_type": "t"}
        for answer in "AB"
    ]
    (folder / "a.json").write_text(json.dumps(rows))
    (folder / "a.mp4").write_bytes(b"." * 40)
    return dataclasses.replace(prepared(folder), answer=choices.LIKELIHOOD)


def test_the_most_likely_option_is_the_response(run, tmp_path):
    model = Chooser()
    runner.evaluate(run, lambda: model, tmp_path / "out")
    (record,) = run_folder.read_records(tmp_path / "out").values()
    assert model.prompts == ["What is it?"] * 2
    assert [answer["read"] for answer in record["answers"]] == ["B", "B"]
    assert [answer["correct"] for answer in record["answers"]] == [False, True]
    assert record["answers"][0]["option_scores"] == [1, 6]
    data = report.summarise(tmp_path / "out")
    text = report.as_markdown(data)
    assert data["accuracy"]["accuracy"] == 50 and "likelihood" in text
    assert text.rstrip().splitlines()[-1].startswith("mlvu, chunked: 50.00 %")


def test_two_ways_of_answering_are_not_mixed(run, tmp_path):
    generated = dataclasses.replace(run, answer=choices.GENERATE)
    runner.evaluate(run, Chooser, tmp_path / "a")
    with pytest.raises(RequestError, match=r"answer likelihood \(now generate\)"):
        runner.evaluate(generated, StandIn, tmp_path / "a")
    runner.evaluate(generated, StandIn, tmp_path / "b")
    remove_way(tmp_path / "b")  # as in a run of an earlier version
    with pytest.raises(RequestError, match=r"answer generate \(now likelihood\)"):
        runner.evaluate(run, Chooser, tmp_path / "b")
    runner.evaluate(generated, StandIn, tmp_path / "b")


def remove_way(folder: Path) -> None:
    content = json.loads((folder / "run.json").read_text())
    del content["settings"]["answer"]
    (folder / "run.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", WANTED)
def test_every_benchmark_reads_the_letter_of_the_chosen_option(name):
    benchmark = evaluation.get_benchmark(name)
    assert [benchmark.read(f"{letter(i)})") for i in range(4)] == list("ABCD")
