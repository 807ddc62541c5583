"""Native checkpoint directories, and finding a checkpoint by name."""

import jax
import numpy as np
import pytest

from vxl2_jax import files
from vxl2_jax.checkpoints import fetch, native
from vxl2_jax.errors import CheckpointError
from vxl2_jax.models import video_xl_2


@pytest.fixture(scope="module")
def saved(tmp_path_factory, toy):
    params = video_xl_2.init(jax.random.key(0), toy.config)
    directory = tmp_path_factory.mktemp("native") / "model"
    native.save(directory, toy.config, params, "{}")
    return directory, toy.config, params


def test_a_saved_checkpoint_can_be_loaded(saved):
    directory, config, params = saved
    found, again = native.load(directory, "float32")
    assert found == config
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, again)))
    assert native.load(directory, "bfloat16")[1]["dts"]["temporal_encoding"].dtype == "bfloat16"


def test_nothing_is_overwritten_and_no_partial_directory_remains(saved, tmp_path):
    directory, config, params = saved
    with pytest.raises(CheckpointError, match="exists already"):
        native.save(directory, config, params, "{}")
    with pytest.raises(UnicodeEncodeError):
        native.save(tmp_path / "new", config, params, "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_reported_before_it_is_full(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(CheckpointError, match="GB are free"):
        native.save(tmp_path / "new", *saved[1:], "{}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["vxl2.json", "params"])
def test_a_damaged_directory_is_refused_in_one_line(saved, tmp_path, damage):
    import shutil

    directory = shutil.copytree(saved[0], tmp_path / "copy")
    part = directory / damage
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.write_text("{")
    with pytest.raises(CheckpointError, match="vxl2.json|native checkpoint") as refusal:
        native.load(directory)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "name", ["no/such/folder", "nothing", "./here", "~/there/x", "a\0b", "w" * 300, "~nobody-there/x", ""]
)
def test_an_unknown_name_is_refused_without_a_download(name, monkeypatch):
    monkeypatch.setattr(fetch, "_download", lambda *_: pytest.fail("went to the network"))
    with pytest.raises(CheckpointError, match="no such checkpoint|must be a path|no known user"):
        fetch.find(name)


def test_two_words_with_a_slash_are_a_hugging_face_name(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "_download", lambda name, revision: tmp_path / name / str(revision))
    assert fetch.find("BAAI/Video-XL-2") == tmp_path / "BAAI/Video-XL-2" / "None"
    assert fetch.find("BAAI/Video-XL-2@v1") == tmp_path / "BAAI/Video-XL-2" / "v1"


def test_what_loading_reads_is_downloaded_at_the_revision(monkeypatch, tmp_path):
    from fnmatch import fnmatch

    import huggingface_hub

    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.update(options, name=name) or str(tmp_path)
    )
    assert fetch.find("BAAI/Video-XL-2@abc") == tmp_path
    assert (asked["name"], asked["revision"]) == ("BAAI/Video-XL-2", "abc")
    for name, wanted in {"vocab.json": 1, "merges.txt": 1, "model.safetensors": 1, "run.py": 0, "a/b.json": 0}.items():
        matches = {key: any(fnmatch(name, one) for one in asked[key]) for key in ("allow_patterns", "ignore_patterns")}
        assert (matches["allow_patterns"] and not matches["ignore_patterns"]) == wanted, name
