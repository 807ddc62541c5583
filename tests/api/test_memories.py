"""A folder of memories: what is there is asked without watching again; `vxl2 memories` lists, checks and prunes."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry, known_implementations

from vxl2_jax import Job, ingest
from vxl2_jax.errors import RequestError
from vxl2_jax.storage import catalogue, shared
from vxl2_jax.storage.locking import open_locked
from vxl2_jax.storage.memory_writer import MemoryFileWriter, partial_path

from .conftest import ASKED

WATCH = {"max_frames": 8}


def answers(model, video, folder, watch=WATCH):
    (done,) = model.answer_all([Job(video, "is there 7?")], watch=watch, ask=ASKED, memories=folder)
    assert done.error is None
    return done.answers


@pytest.fixture
def folder(model, clip, tmp_path):
    """A folder with one memory."""
    answers(model, clip, tmp_path / "memories")
    return tmp_path / "memories"


def test_a_memory_that_is_there_is_asked_without_watching(model, clip, folder, monkeypatch):
    (path,) = folder.iterdir()
    alone = next(model.answer_all([Job(clip, "is there 7?")], watch=WATCH, ask=ASKED)).answers
    monkeypatch.setattr(ingest, "_watch_strides", lambda *_, **__: pytest.fail("watched"))
    assert answers(model, clip, folder) == alone and list(folder.iterdir()) == [path]


def test_other_settings_and_videos_have_memories_of_their_own(model, clip, folder, tmp_path):
    other = tmp_path / clip.name
    shutil.copy(clip, other)
    answers(model, other, folder)
    answers(model, clip, folder, WATCH | {"compression": 1})
    found = list(catalogue.entries(folder))
    assert [entry.state for entry in found] == [catalogue.OK] * 3
    assert sorted(entry.identity["compression"] for entry in found) == [1, 4, 4]
    assert len({entry.identity["fingerprint"] for entry in found}) == 2


def test_a_memory_that_another_job_is_writing_is_watched_without_a_file(model, clip, folder):
    (path,) = folder.iterdir()
    path.unlink()
    with open_locked(partial_path(path)):
        assert answers(model, clip, folder)
        assert [entry.state for entry in catalogue.entries(folder)] == [catalogue.WRITING]
        assert not list(catalogue.prune(folder))


def test_the_catalogue_lists_checks_and_prunes(command, folder):
    (path,) = folder.iterdir()
    code, out, _ = command("memories", folder, "--json")
    (entry,) = json.loads(out)["memories"]
    assert code == 0 and entry["state"] == "ok" and entry["frames"] == 8 and entry["file"] == path.name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    (folder / f"z.{path.name}").write_bytes(data)
    partial_path(folder / "y.memory").write_bytes(path.read_bytes()[:99])
    (folder / "notes.txt").write_text("mine")
    code, out, error = command("memories", folder, "--check")
    assert code == 2 and "1 damaged" in error and ": incomplete, " in out
    code, out, _ = command("memories", folder, "--check", "--prune")
    assert code == 0 and out.count("removed: ") == 2
    assert sorted(one.name for one in folder.iterdir()) == sorted(["notes.txt", path.name])
    assert command("memories", folder / "no")[0] == 2


@pytest.fixture
def url(tmp_path, monkeypatch):
    """The address of a folder in the memory of this process, and a cache folder of the user's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield "memory://here/memories"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def local_files(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_memory_at_an_address_is_fetched_and_asked_without_watching(model, clip, url, command, tmp_path, monkeypatch):
    alone = answers(model, clip, tmp_path / "folder")
    assert answers(model, clip, url) == alone and not local_files(tmp_path)
    (name,) = (path.name for path in (tmp_path / "folder").iterdir())
    assert list(MemoryFileSystem.store) == [f"/here/memories/{name}"]
    with monkeypatch.context() as patched:
        patched.setattr(ingest, "_watch_strides", lambda *_, **__: pytest.fail("watched"))
        assert answers(model, clip, url) == alone and not local_files(tmp_path)
    code, out, _ = command("memories", url, "--json")
    (entry,) = json.loads(out)["memories"]
    assert code == 0 and entry == json.loads(command("memories", tmp_path / "folder", "--json").out)["memories"][0]

    stored = MemoryFileSystem.store[f"/here/memories/{name}"]
    stored.seek(size := entry["bytes"] // 2)
    stored.write(bytes([stored.getvalue()[size] ^ 255]))
    code, _, error = command("memories", url, "--check")
    assert code == 2 and "1 damaged" in error and "cache" not in error
    (done,) = model.answer_all([Job(clip, "is there 7?")], watch=WATCH, ask=ASKED, memories=url)
    assert f"{url}: " in str(done.error) and "damaged" in str(done.error) and not local_files(tmp_path)
    code, out, _ = command("memories", url, "--check", "--prune")
    assert code == 0 and "removed: " in out and not MemoryFileSystem.store and not local_files(tmp_path)


def test_an_upload_that_fails_leaves_nothing_there_and_is_made_up_for_without_watching(
    model, clip, url, tmp_path, monkeypatch
):
    def fail(*_):
        raise PermissionError("not yours")

    with monkeypatch.context() as patched:
        patched.setattr(shared.shutil, "copyfileobj", fail)
        (done,) = model.answer_all([Job(clip, "is there 7?")], watch=WATCH, ask=ASKED, memories=url)
    assert f"{url}: cannot be written (not yours)" in str(done.error)
    assert not MemoryFileSystem.store and len(local_files(tmp_path)) == 1
    monkeypatch.setattr(ingest, "_watch_strides", lambda *_, **__: pytest.fail("watched"))
    assert answers(model, clip, url) and len(MemoryFileSystem.store) == 1 and not local_files(tmp_path)


def test_an_unfinished_memory_of_an_address_resumes_on_this_machine(model, clip, url, tmp_path, monkeypatch):
    finish = MemoryFileWriter.finish
    monkeypatch.setattr(MemoryFileWriter, "finish", lambda *_: (_ for _ in ()).throw(RequestError("cut off")))
    (done,) = model.answer_all([Job(clip, "is there 7?")], ask=ASKED, memories=url)
    assert "cut off" in str(done.error) and [path.suffix for path in local_files(tmp_path)] == [".part"]
    monkeypatch.setattr(MemoryFileWriter, "finish", finish)
    (done,) = model.answer_all([Job(clip, "is there 7?")], ask=ASKED, memories=url)
    assert done.error is None and len(MemoryFileSystem.store) == 1 and not local_files(tmp_path)


def test_a_full_disk_is_one_line_and_what_was_being_fetched_goes_again(model, clip, url, tmp_path, monkeypatch):
    answers(model, clip, url)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("vxl2_jax.files.shutil.disk_usage", lambda _: usage(10))
    (done,) = model.answer_all([Job(clip, "is there 7?")], watch=WATCH, ask=ASKED, memories=url)
    assert "free some space on that disk" in str(done.error) and not local_files(tmp_path)


def test_what_a_killed_process_was_fetching_goes_and_what_another_one_is_fetching_stays(url, tmp_path):
    folder = shared.open_folder(url)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for process in (int(gone.stdout), os.getppid()):
        (folder.local / f".a.memory.{process}.fetched").touch()
    shared.open_folder(url)
    assert [path.name for path in local_files(tmp_path)] == [f".a.memory.{os.getppid()}.fetched"]


def test_a_folder_of_a_bucket_may_be_empty_and_a_bucket_is_not_made(url, monkeypatch):
    with pytest.raises(RequestError, match="not found"):
        shared.open_folder("memory://bucket/empty", create=False)
    monkeypatch.setattr(shared, "_BUCKETS", {"memory"})
    with pytest.raises(RequestError, match="not found"):
        shared.open_folder("memory://bucket/empty")
    fsspec.filesystem("memory").pipe("/bucket/other", b"")
    assert shared.open_folder("memory://bucket/empty").names() == []


def test_a_file_address_is_a_path(tmp_path):
    assert shared.open_folder(f"file://{tmp_path}/a%20b") == tmp_path / "a b" and (tmp_path / "a b").is_dir()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nothing://a/b", "not an address of a folder"),
        ("file://other/b", "file:///FOLDER"),
        ("s3://a/b", 'pip install "vxl2_jax[remote]"'),
        ("sftp://a/b", "Install no_such; install that package"),
        ("refused://a/b", "cannot be made (not yours); check the address"),
    ],
)
def test_a_wrong_address_is_one_line_before_anything_is_loaded_or_written(
    command, clip, tmp_path, monkeypatch, address, message
):
    class Refused(MemoryFileSystem):
        protocol = "refused"

        def makedirs(self, *_, **__):
            raise PermissionError("not yours")

    fsspec.register_implementation("refused", Refused, clobber=True)
    for protocol in ("s3", "sftp"):
        monkeypatch.setitem(known_implementations, protocol, {"class": "no_such.System", "err": "Install no_such"})
        monkeypatch.delitem(_registry, protocol, raising=False)
    monkeypatch.setattr("vxl2_jax.cli.options.load_model", lambda *_: pytest.fail("loaded"))
    (tmp_path / "jobs").write_text(json.dumps({"video": str(clip), "questions": ["what?"]}))
    code, _, error = command("batch", tmp_path / "jobs", "--out", tmp_path / "out", "--memories", address)
    assert code == 2 and error.count("\n") == 1 and message in error and not (tmp_path / "out").exists()
