"""Files of responses and annotations: what is read, and how a bad file is refused."""

import gzip
import json

import pytest

from vxl2_jax import evaluation
from vxl2_jax.errors import RequestError

ROWS = [
    {
        "benchmark": "lvbench",
        "variant": "pure",
        "subset": "tv",
        "response": "B",
        "answer": "B",
        "question_type": ["x", "y"],
    },
    {"benchmark": "mlvu", "response": "C) toast", "answer": "C", "task_type": "order"},
    {"response": "", "answer": "D", "type": "tv", "question_type": None},
]


def lines(rows) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


@pytest.mark.parametrize(
    "data",
    [
        lines(ROWS),
        lines(ROWS) + b"\n\n",
        gzip.compress(lines(ROWS), mtime=0),
        json.dumps(ROWS, indent=1).encode(),
        lines(ROWS).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + lines(ROWS),
    ],
)
def test_responses_are_read_from_lines_or_a_list_plain_or_gzipped(tmp_path, data):
    path = tmp_path / "responses"
    path.write_bytes(data)
    pairs, left_out = evaluation.read_responses(evaluation.get_benchmark("lvbench"), path)
    assert [(row.answer, response) for row, response in pairs] == [("B", "B"), ("D", "")] and left_out == 1
    assert pairs[0][0].groups == {
        "question_type": ("x", "y"),
        "variant": ("pure",),
        "subset": ("tv",),
        "variant/subset": ("pure/tv",),
    }
    assert pairs[1][0].groups == {"type": ("tv",)}


@pytest.mark.parametrize(
    "data, words",
    [
        (lines([{"answer": "B"}]), "row 1: lacks the key 'response'; add it"),
        (lines([ROWS[2], {"response": "B"}]), "row 2: lacks the key 'answer'; add it"),
        (lines([{"response": None, "answer": "B"}]), "row 1: 'response' must be a string, not None"),
        (lines([{"response": "B", "answer": "(B) Blue"}]), "'answer' must be the letter of an option, such as 'B'"),
        (lines([ROWS[1]]), "no row of lvbench, only of mlvu"),
        (lines(ROWS) + b"\n{", ", line 4: not JSON"),
        (b"[1, ", "not JSON at line 1, column 5"),
        (b"[1]", "row 1 must be"),
        (b'"B"', "row 1 must be"),
        (b" \n", "no rows in it"),
        (b"[]", "no rows in it"),
        (b"\xff\xfe", "not UTF-8"),
        (gzip.compress(b"x" * 99, mtime=0)[:20], "damaged gzip data"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, data, words):
    path = tmp_path / "responses.jsonl"
    path.write_bytes(data)
    with pytest.raises(RequestError) as caught:
        evaluation.read_responses(evaluation.get_benchmark("lvbench"), path)
    message = str(caught.value)
    assert message.startswith(f"{path}") and words in message and "\n" not in message


@pytest.mark.parametrize("name, words", [("", "a directory"), ("missing", "no such file; give a")])
def test_folders_and_missing_files_are_named(tmp_path, name, words):
    with pytest.raises(RequestError, match=words):
        evaluation.read_docs(evaluation.get_benchmark("mlvu"), tmp_path / name)


def test_docs_are_refused_with_the_number_of_the_row(tmp_path, docs):
    path = tmp_path / "docs.json"
    path.write_text(json.dumps([docs["mlvu"], docs["lvbench"]]))
    with pytest.raises(RequestError, match="row 2: lacks the key 'task_type'"):
        evaluation.read_docs(evaluation.get_benchmark("mlvu"), path)
