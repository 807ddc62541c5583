"""Files that users name: only regular ones of bounded size are read, and everything else is one line of error."""

import dataclasses
import gzip
import json
import os
import pickle
from pathlib import Path

import pytest

from vxl2_jax import files
from vxl2_jax.errors import MAX_MESSAGE, RequestError, Vxl2Error

KINDS = {name: kind for name, kind in vars(files).items() if isinstance(kind, files.FileKind)}
SMALL = dataclasses.replace(files.ANNOTATIONS, max_bytes=100)


def problem(action, *args):
    """The message of the error that an action raises; one line."""
    with pytest.raises(Vxl2Error) as caught:
        action(*args)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_messages_are_one_line_of_bounded_length():
    def fail():
        raise RequestError(f"file.json: {'x' * 10**6}\nis no name\u2028here; give another")

    message = problem(fail)
    assert len(message) == MAX_MESSAGE and message.startswith("file.json: x") and message.endswith("give another")
    assert str(pickle.loads(pickle.dumps(RequestError(message)))) == message


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_only_regular_files_are_opened(tmp_path, kind):
    """A pipe without a writer would block for ever; the test's time limit would stop it."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing", "/dev/zero", "a\0b", "\ud800", "x" * 5000):
        with pytest.raises(kind.error, match=kind.fix.replace("(", r"\(").replace("{", r"\{")[:20]):
            files.read_bytes(path, kind)


def test_a_link_to_a_device_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    assert "device" in problem(files.read_text, tmp_path / "link", SMALL)


def test_a_refused_file_is_closed(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, "/dev/zero"):
        problem(files.open_regular, path, SMALL)
    assert len(os.listdir("/proc/self/fd")) == before


def test_size_is_limited_before_reading(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    assert "1,099,511,627,776" in problem(files.read_bytes, tmp_path / "sparse", files.JOBS)


def test_compressed_data_is_limited_by_what_it_expands_to(tmp_path):
    path = tmp_path / "rows.gz"
    path.write_bytes(gzip.compress(bytes(99)))
    assert files.read_bytes(path, SMALL) == bytes(99)
    path.write_bytes(gzip.compress(bytes(10**4)))
    assert "100 bytes" in problem(files.read_bytes, path, SMALL)
    path.write_bytes(gzip.compress(bytes(99))[:-9])
    problem(files.read_bytes, path, SMALL)
    assert files.read_bytes(path, dataclasses.replace(SMALL, gzipped=False)) == path.read_bytes()


def test_a_byte_order_mark_is_no_content(tmp_path):
    path = tmp_path / "text"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + "é\r\n".encode())
        assert files.read_text(path, SMALL) == "é\r\n"
    path.write_bytes("é".encode("utf-16"))
    assert "UTF-8" in problem(files.read_text, path, SMALL)


def test_only_line_feeds_end_json_lines(tmp_path):
    texts = ["a\u2028b", "c\x85d", "e\x0cf\x1d"]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(text, ensure_ascii=False) for text in texts) + "\r\n", encoding="utf-8")
    assert list(files.read_json_lines(path, SMALL)) == list(zip((1, 3, 5), texts, strict=True))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000, '{"a":1}\n{}', "nul"])
def test_what_is_not_json_is_one_line(text):
    message = problem(files.parse_json, text, "rows.json", files.ANNOTATIONS)
    assert message.startswith("rows.json: not JSON") and len(message) < 300


@pytest.mark.parametrize("text", ["[]", "5", "null", '"a"'])
def test_an_object_is_an_object(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert "object" in problem(files.read_json_object, tmp_path / "a.json", SMALL)


def test_a_file_that_grows_while_it_is_read_stays_limited(tmp_path, monkeypatch):
    path = tmp_path / "growing"
    path.write_bytes(bytes(90))
    open_regular = files.open_regular

    def grow(*args):
        file = open_regular(*args)
        path.write_bytes(bytes(10**6))
        return file

    monkeypatch.setattr(files, "open_regular", grow)
    assert "100 bytes" in problem(files.read_bytes, path, SMALL)


def test_a_broken_link_is_there(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert files.is_there(tmp_path / "link") and not files.is_there(tmp_path / "gone")
    assert not files.is_there(tmp_path / "a\0b")


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "missing folder", "no folder", "long name", "null"])
def test_only_regular_files_can_be_written(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("gone")
    (tmp_path / "file").touch()
    others = {
        "missing folder": tmp_path / "no" / "out",
        "no folder": tmp_path / "file" / "out",
        "long name": tmp_path / ("x" * 300),
        "null": Path("a\0b"),
    }
    problem(files.check_output, others.get(kind, path))


def test_paths_may_be_in_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert files.check_path("~/a", "it") == Path("/somewhere/a")
    for wrong in ("~nobody-there/a", "", "a\0b", 3, None):
        assert "it" in problem(files.check_path, wrong, "it")
