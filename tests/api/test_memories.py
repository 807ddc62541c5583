"""A folder of memories: what is there is asked without watching again; `vxl2 memories` lists, checks and prunes."""

import json
import shutil

import pytest

from vxl2_jax import Job, ingest
from vxl2_jax.storage import catalogue
from vxl2_jax.storage.locking import open_locked
from vxl2_jax.storage.memory_writer import partial_path

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
