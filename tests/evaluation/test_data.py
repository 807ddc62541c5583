"""A benchmark's folder: annotations in every published form, videos by name, subtitles."""

import json
import sys

import numpy as np
import pytest

from experiments.synthetic import benchmark_rows, clips, files, multiple_choice, pictures
from experiments.synthetic.__main__ import main
from vxl2_jax import evaluation
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import data, published

NAMES = tuple(evaluation.BENCHMARKS)


@pytest.fixture(scope="module")
def asked():
    """Questions about three clips that were never rendered."""
    rng = np.random.default_rng(3)
    drawn = [clips.draw_clip(rng, seconds=60, names=pictures.load()[0]) for _ in range(3)]
    return [multiple_choice.draw(rng, f"clip.{i}", clip, 4) for i, clip in enumerate(drawn)]


def folder(tmp_path, name, asked, form="task", ending="json"):
    for file, content in benchmark_rows.annotations(name, form, ending, asked).items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        files.write(tmp_path / file, content)
    for each in asked:
        (tmp_path / f"{each[0].video}.mp4").write_bytes(b"a video")
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_every_format_gives_the_same_questions(tmp_path, asked, name, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    items = data.read(evaluation.get_benchmark(name), folder(tmp_path, name, asked, ending=ending))
    assert [item.index for item in items] == [0, 1, 2] and [len(item.rows) for item in items] == list(map(len, asked))
    assert [item.path.name for item in items] == ["clip.0.mp4", "clip.1.mp4", "clip.2.mp4"]
    first, row = asked[0][0], items[0].rows[0]
    assert row.answer == "ABCD"[first.correct] and first.question in row.question
    assert all(option in evaluation.get_benchmark(name).prompt(row) for option in first.options)
    assert (first.type,) in row.groups.values()


@pytest.mark.parametrize("name", ["mlvu", "longvideobench", "lvbench"])
def test_the_benchmarks_own_files_ask_the_same_as_the_tasks_rows(tmp_path, asked, name):
    benchmark, digests = evaluation.get_benchmark(name), set()
    for form in ("task", "published"):
        place = tmp_path / form
        place.mkdir()
        items = data.read(benchmark, folder(place, name, asked, form=form))
        digests.add(data.digest(benchmark, items))
    assert len(digests) == 1
    assert data.digest(benchmark, items[:2]) not in digests


@pytest.mark.parametrize(
    "name, doc, words",
    [
        (
            "mlvu",
            {"video": "a.mp4", "question": "?", "candidates": ["x", "y"], "answer": "z", "question_type": "ego"},
            "'answer' must be one of",
        ),
        (
            "mlvu",
            {"video": "a.mp4", "candidates": ["x"], "answer": "x", "question_type": "ego"},
            "lacks the key 'question'",
        ),
        ("longvideobench", {"candidates": list("uvwxyz")}, "'candidates' has 6 entries"),
        ("lvbench", {"key": "a", "type": "tv", "qa": ["?"]}, "'qa' must be a list of objects"),
        (
            "lvbench",
            {"key": "a", "type": "tv", "qa": [{"question": "?\n(A) x", "answer": "B"}]},
            "entry 1: 'answer' must be the letter",
        ),
    ],
)
def test_invalid_published_rows_are_named(name, doc, words):
    with pytest.raises(RequestError, match=words):
        published.to_task_rows(name, doc)


def test_questions_of_mlvu_that_are_answered_in_sentences_are_left_out():
    assert (
        published.to_task_rows(
            "mlvu", {"video": "a.mp4", "question": "?", "answer": "long", "question_type": "summary"}
        )
        == []
    )


def test_annotations_are_found_by_their_published_names(tmp_path):
    for name in ("lvb_val.json", "lvb_test_wo_gt.json", "validation-0.parquet"):
        (tmp_path / name).write_text("[]")
    assert data.find_annotations("longvideobench", tmp_path) == [tmp_path / "lvb_val.json"]
    with pytest.raises(RequestError, match=r"several files may be .*lvb_test_wo_gt.json, lvb_val.json.*--annotations"):
        data.find_annotations("lvbench", tmp_path)
    (tmp_path / "json").mkdir()
    for name in ("2_needle.json", "1_plotQA.json"):
        (tmp_path / "json" / name).write_text("[]")
    assert [path.name for path in data.find_annotations("mlvu", tmp_path)] == ["1_plotQA.json", "2_needle.json"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="empty: no annotations"):
        data.find_annotations("mlvu", tmp_path / "empty")


def test_parquet_without_pyarrow_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RequestError, match=r"x.parquet: .*pip install pyarrow"):
        evaluation.read_docs(evaluation.get_benchmark("mlvu"), tmp_path / "x.parquet")


@pytest.mark.parametrize("content, words", [(None, "no such file"), (b"PAR1 no parquet", "cannot be read")])
def test_bad_parquet_is_named(tmp_path, content, words):
    pytest.importorskip("pyarrow")
    if content:
        (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(RequestError, match=f"x.parquet: {words}"):
        evaluation.read_docs(evaluation.get_benchmark("mlvu"), tmp_path / "x.parquet")


@pytest.mark.parametrize(
    "there, found",
    [
        (["videos/deep/kitchen_3.mp4"], "videos/deep/kitchen_3.mp4"),
        (["kitchen_3.webm", "kitchen_3.txt"], "kitchen_3.webm"),
        (["kitchen_3.MKV"], "kitchen_3.MKV"),
        (["a/kitchen_3.mp4", "kitchen_3.mp4"], "kitchen_3.mp4"),
        (["a/kitchen_3.mp4", "b/kitchen_3.mp4"], "a/kitchen_3.mp4"),
    ],
)
def test_videos_are_found_by_name_at_any_depth(tmp_path, there, found):
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"the same")
    path, problem = data.VideoFiles(tmp_path).find("kitchen_3.mp4", ("kitchen_3.mp4",))
    assert path == tmp_path / found and not problem


def test_the_reason_is_given_for_a_missing_or_ambiguous_video(tmp_path):
    name = "kitchen_3.mp4"
    assert data.VideoFiles(tmp_path).find(name, (name,)) == (None, f"kitchen_3.mp4: no such video in {tmp_path}")
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(folder.encode() * ord(folder))
    path, problem = data.VideoFiles(tmp_path).find(name, (name,))
    assert path is None and "2 different files have this name" in problem


def test_keys_identify_questions_and_number_repeated_ones(tmp_path, docs):
    rows = [docs["mlvu"], docs["mlvu"], {**docs["mlvu"], "question": "Why?"}, {**docs["mlvu"], "video_name": "b.mp4"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    first, second = (data.question_keys(item) for item in data.read(evaluation.get_benchmark("mlvu"), tmp_path))
    assert first[1] == f"{first[0]}-2" and len({*first, *second}) == 4
    assert first[0] == data.question_keys(data.read(evaluation.get_benchmark("mlvu"), tmp_path, limit=1)[0])[0]


def test_subtitles_are_read_by_video_and_bad_ones_named(tmp_path, docs):
    (tmp_path / "a.json").write_text(json.dumps([docs["video_mme"], {**docs["video_mme"], "videoID": "other"}]))
    (tmp_path / "srt").mkdir()
    (tmp_path / "srt" / "k1tch3n.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    items = data.read(evaluation.get_benchmark("video_mme"), tmp_path, subtitle_folder=tmp_path / "srt")
    assert ["hello" in (item.srt or "") for item in items] == [True, False]
    assert all(item.srt is None for item in data.read(evaluation.get_benchmark("video_mme"), tmp_path))
    (tmp_path / "srt" / "other.srt").write_bytes(b"1\n00:00:01,000 --> 00:00:02,000\nh\xe9\n")
    items = data.read(evaluation.get_benchmark("video_mme"), tmp_path, subtitle_folder=tmp_path / "srt")
    assert items[0].srt and items[1].path is None and "other.srt: not UTF-8" in items[1].problem


def test_invalid_rows_are_left_out_and_the_others_kept(tmp_path, docs):
    (tmp_path / "v").mkdir()
    good = docs["mlvu"]
    rows = [good, {**good, "answer": "red "}, 7, {"video_name": "\ud800"}, {**good, "duration": 1e400}, good]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    problems = []
    (item,) = data.read(evaluation.get_benchmark("mlvu"), tmp_path, left_out=problems.append)
    assert len(item.rows) == 2 and [problem.partition(":")[0] for problem in problems] == ["a.json"] * 4
    assert all(f"row {number}" in problem for number, problem in zip((2, 3, 4, 5), problems, strict=True))
    (tmp_path / "a.json").write_text(json.dumps(rows[1:-1]))
    with pytest.raises(RequestError, match="row 1: 'answer' must be the letter"):
        data.read(evaluation.get_benchmark("mlvu"), tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_test_split_have_no_answer(tmp_path, docs, name):
    key = "correct_choice" if name == "longvideobench" else "answer"
    for left in ({}, {key: None}):
        doc = {other: value for other, value in docs[name].items() if other != key} | left
        row = evaluation.get_benchmark(name).row(doc)
        verdict = evaluation.judge(evaluation.get_benchmark(name), row, "A")
        assert row.answer is None and not verdict.correct and not verdict.counted


def test_folders_that_are_missing_are_named(tmp_path):
    with pytest.raises(RequestError, match="nowhere: no such folder"):
        data.read(evaluation.get_benchmark("mlvu"), tmp_path / "nowhere")
    with pytest.raises(RequestError, match="nowhere: no such folder"):
        data.read(evaluation.get_benchmark("mlvu"), tmp_path, videos=tmp_path / "nowhere")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--seconds", "8", "9"], "from 16 to 1000"),
        (["--size", "33"], "33 is not an even number"),
        ([], "exists already"),
        (["--form", "published", "--out", "new"], "video_mme publishes the rows of the task"),
    ],
)
def test_a_benchmark_that_cannot_be_made_is_refused_in_one_line(tmp_path, capsys, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "annotations.json").write_text("[]")
    with pytest.raises(SystemExit) as end:
        main(["benchmark", "--benchmark", "video_mme", "--out", str(tmp_path), *flags])
    error = capsys.readouterr().err
    assert end.value.code == 2 and words in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["annotations.json"]
