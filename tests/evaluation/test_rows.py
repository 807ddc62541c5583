"""Annotation rows are parsed into `Row`; invalid ones are refused in one line."""

import pytest

from vxl2_jax import evaluation
from vxl2_jax.errors import RequestError

OPTIONAL = {"question_id", "time_reference"}


@pytest.mark.parametrize(
    "name, answer, files, options",
    [
        ("mlvu", "B", ("kitchen_3.mp4",), 0),
        ("video_mme", "C", ("k1tch3n.mp4", "k1tch3n.MP4", "k1tch3n.mkv"), 4),
        ("longvideobench", "B", ("boats.mp4",), 2),
        ("lvbench", "C", ("b0ats.mp4",), 3),
    ],
)
def test_rows_have_a_letter_and_files_to_look_for(docs, name, answer, files, options):
    row = evaluation.get_benchmark(name).row(docs[name])
    assert (row.answer, row.files, len(row.options)) == (answer, files, options)
    assert row.question == docs[name]["question"] and row.subtitles is None


def test_rows_are_grouped_by_annotation_fields(docs):
    groups = {name: evaluation.get_benchmark(name).row(doc).groups for name, doc in docs.items()}
    assert groups == {
        "mlvu": {"task_type": ("order",)},
        "video_mme": {
            "duration": ("medium",),
            "domain": ("Sports",),
            "sub_category": ("Rowing",),
            "task_type": ("Counting",),
        },
        "longvideobench": {"duration_group": ("600",), "question_category": ("S2E",)},
        "lvbench": {"type": ("sport",), "question_type": ("reasoning", "summary")},
    }
    assert all(tuple(found) == evaluation.get_benchmark(name).GROUPS for name, found in groups.items())


def test_durations_in_seconds_and_ids_are_kept_where_there_are_some(docs):
    rows = {name: evaluation.get_benchmark(name).row(doc) for name, doc in docs.items()}
    assert [rows[name].duration_s for name in rows] == [312.5, None, 404.2, None]
    assert [rows[name].id for name in rows] == [None, "812-2", "boats_0", None]


def test_an_lvbench_answer_that_is_no_candidate_is_never_right(docs):
    lvbench = evaluation.get_benchmark("lvbench")
    row = lvbench.row({**docs["lvbench"], "answer": "(C) Grey"})
    assert not any(lvbench.score(row, response) for response in ("C", "(C) Grey", "", "no letter"))


@pytest.mark.parametrize("name", evaluation.BENCHMARKS)
def test_every_missing_key_is_named(docs, name):
    needed = (
        set(docs[name]) - OPTIONAL - {"answer", "correct_choice"} - ({"duration"} if name != "video_mme" else set())
    )
    for key in needed:
        doc = {other: value for other, value in docs[name].items() if other != key}
        with pytest.raises(RequestError, match=f"lacks the key '{key}'; add it"):
            evaluation.get_benchmark(name).row(doc)
    for key in set(docs[name]) - needed:
        evaluation.get_benchmark(name).row({other: value for other, value in docs[name].items() if other != key})


@pytest.mark.parametrize(
    "name, changed, words",
    [
        ("mlvu", {"answer": "toast"}, "'answer' must be the letter of an option"),
        ("mlvu", {"question": None}, "'question' must be a string, not None"),
        ("mlvu", {"duration": "long"}, "'duration' must be an integer or a number, not 'long'"),
        ("video_mme", {"options": "A. Two."}, "'options' must be a list, not 'A. Two.'"),
        ("video_mme", {"options": [2]}, "'options' must be a list of strings"),
        ("longvideobench", {"correct_choice": 2}, "'correct_choice' must be from 0 to 1"),
        ("longvideobench", {"correct_choice": True}, "'correct_choice' must be an integer"),
        ("lvbench", {"candidates": list("uvwxyz")}, "'candidates' has 6 entries"),
        ("lvbench", {"question_type": "reasoning"}, "'question_type' must be a list"),
    ],
)
def test_values_of_the_wrong_kind_are_named(docs, name, changed, words):
    with pytest.raises(RequestError, match=words):
        evaluation.get_benchmark(name).row({**docs[name], **changed})


def test_an_unknown_benchmark_is_named_with_the_known_ones():
    with pytest.raises(RequestError, match="unknown benchmark 'mmlu': choose mlvu, video_mme, long.*lvbench"):
        evaluation.get_benchmark("mmlu")
