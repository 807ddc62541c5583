"""The original's oracle files are read as it reads them; others are refused in one line that names the place."""

import json

import pytest

from vxl2_jax.errors import RequestError
from vxl2_jax.relevance import oracle
from vxl2_jax.relevance.oracle import OracleSelection

GOOD = {
    "plotQA": {
        "config": {
            "selected_topk": None,
            "selected_chunk_size": 6,
            "compression": 4,
            "relevance oracle": "languagebind",
        },
        "selected_unit_indices": {"a.mp4_What?": [3, 1], "b.mp4_Who?": [], "c.mp4_Why?": None},
    },
    "count": None,
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_files_of_the_original_are_read(tmp_path):
    found = oracle.read(write(tmp_path / "mlvu.json", GOOD))
    assert found.choices == {
        "a.mp4_What?": OracleSelection("plotQA", (3, 1), 6, 4), "b.mp4_Who?": OracleSelection("plotQA", (), 6, 4),
        "c.mp4_Why?": OracleSelection("plotQA", None, 6, 4),
    }  # fmt: skip
    assert found.plain == {"count"} and found.source == str(tmp_path / "mlvu.json")
    assert found.find(["a_What?", "b.mp4_Who?"]).units == () and found.find(["a_What?"]) is None


def test_of_a_question_in_several_categories_the_last_one_counts(tmp_path):
    both = {name: {"config": {"selected_chunk_size": size}, "selected_unit_indices": {"a_What?": [size]}}
            for name, size in (("events", 16), ("entities", 4))}  # fmt: skip
    assert oracle.read(write(tmp_path / "lvbench.json", both)).choices == {
        "a_What?": OracleSelection("entities", (4,), 4, None)
    }


def test_a_folder_stands_for_all_its_files(tmp_path):
    write(tmp_path / "short.json", GOOD)
    write(
        tmp_path / "long.json", {"ego": {"config": None, "selected_unit_indices": {"d.mp4_How?": [0]}}, "order": None}
    )
    found = oracle.read(tmp_path)
    assert len(found.choices) == 4 and found.plain == {"count", "order"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="no oracle files"):
        oracle.read(tmp_path / "empty")


@pytest.mark.parametrize("content, told", [
    (None, "no such file"),
    ("", "not JSON"),
    ([1], "must be an object, not \\[1\\]"),
    ({"a": {"config": {}}}, "'a': lacks 'selected_unit_indices'"),
    ({"a": 3}, "'a': must be an object, not 3"),
    ({"a": {"selected_unit_indices": {"k": 4}}}, "'a', 'k': units must be a list of whole numbers from 0, not 4"),
    ({"a": {"selected_unit_indices": {"k": [1, -2]}}}, "units must be"),
    ({"a": {"selected_unit_indices": {"k": ["1"]}}}, "units must be"),
    ({"a": {"selected_unit_indices": []}}, "'selected_unit_indices': must be an object"),
    ({"a": {"config": 4, "selected_unit_indices": {}}}, "'config': must be an object"),
    ({"a": {"config": {"selected_chunk_size": 0}, "selected_unit_indices": {}}}, "'selected_chunk_size' must be a whole number from 1"),
    ({"a": {"config": {"compression": "4"}, "selected_unit_indices": {}}}, "'compression' must be a whole number"),
])  # fmt: skip
def test_other_files_are_refused_in_one_line(tmp_path, content, told):
    path = tmp_path / "oracle.json"
    if content is not None:
        write(path, content)
    with pytest.raises(RequestError, match=told) as caught:
        oracle.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(RequestError, match="not UTF-8"):
        oracle.read(tmp_path / "a.json")
