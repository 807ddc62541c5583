"""Files of lines: every kill leaves complete lines and at most one beginning, and files of anything else are not changed."""

import json
import os

import pytest

from vxl2_jax.errors import BusyError, RequestError
from vxl2_jax.files import ROWS
from vxl2_jax.storage import jsonl, locking
from vxl2_jax.storage.locking import open_locked

LINES = ['{"a": "\u2028\r"}\n', '{"é": 1}\n', "[]\n"]


def test_rows_are_read_one_at_a_time_with_their_place(tmp_path):
    (tmp_path / "f").write_bytes("".join([*LINES, '{"cut']).encode())
    with open_locked(tmp_path / "f") as file:
        rows = jsonl.read(file, lambda line: line)
        assert next(rows) == (LINES[0], len(LINES[0].encode())) and [row for row, _ in rows] == LINES[1:]


def test_a_file_is_continued_after_its_last_complete_line(tmp_path):
    (tmp_path / "f").write_bytes("".join([*LINES, '{"cut']).encode())
    with open_locked(tmp_path / "f") as file:
        assert list(jsonl.resume(file, lambda line: line, lambda beginning: beginning == '{"cut')) == LINES
        jsonl.append(file, {"next": 1})
    assert (tmp_path / "f").read_bytes().decode() == "".join([*LINES, '{"next": 1}\n'])


@pytest.mark.parametrize("content", [b"\xff\n", b"[]\n{\n", b"[]\nother", b"[" * 40 + b"\n"], ids=repr)
def test_any_other_file_is_not_changed(tmp_path, content, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_CHARACTERS", 40)
    (tmp_path / "f").write_bytes(content)
    with open_locked(tmp_path / "f") as file, pytest.raises(ValueError):
        list(jsonl.resume(file, json.loads, lambda beginning: beginning.startswith("{")))
    assert (tmp_path / "f").read_bytes() == content


def test_a_file_of_many_rows_can_be_continued_and_one_of_any_size_cannot(tmp_path):
    """A million rows are a gigabyte. The files here are sparse: they take no room on the disk."""
    path = tmp_path / "f"
    path.touch()
    os.truncate(path, 2**31)
    with open_locked(path):
        pass
    os.truncate(path, ROWS.max_bytes + 1)
    with pytest.raises(RequestError, match="more than the limit"), open_locked(path):
        pass


def test_an_error_leaves_no_file_that_it_made_and_every_file_with_rows(tmp_path):
    (tmp_path / "old").touch()
    for name, row in (("new", ""), ("old", ""), ("begun", "[]\n")):
        with pytest.raises(RuntimeError), open_locked(tmp_path / name) as file:
            file.write(row)
            raise RuntimeError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old": "", "begun": "[]\n"}


def test_a_file_that_was_removed_while_it_was_opened_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "lock", lambda file, path: path.unlink())
    with pytest.raises(BusyError, match="run the command again"), open_locked(tmp_path / "f"):
        pass
