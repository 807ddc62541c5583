"""Native checkpoint directories, and finding a checkpoint by name."""

import json
import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vxl2_jax import files
from vxl2_jax.checkpoints import assemble, fetch, native, quantised_file
from vxl2_jax.errors import CheckpointError
from vxl2_jax.models import quantised, video_xl_2
from vxl2_jax.models.quantised import INT8, SETTINGS, W8A8, WIDE


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


def test_further_files_are_part_of_the_directory_or_nothing_is(saved, tmp_path):
    native.save(tmp_path / "new", *saved[1:], "{}", {"scope.json": b"1"})
    assert (tmp_path / "new" / "scope.json").read_bytes() == b"1"
    with pytest.raises(CheckpointError, match="cannot write"):
        native.save(tmp_path / "other", *saved[1:], "{}", {"no/folder": b"1"})
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("damage", ["vxl2.json", "params"])
def test_a_damaged_directory_is_refused_in_one_line(saved, tmp_path, damage):
    directory = shutil.copytree(saved[0], tmp_path / "copy")
    part = directory / damage
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.write_text("{")
    with pytest.raises(CheckpointError, match="vxl2.json|native checkpoint") as refusal:
        native.load(directory)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("setting", [WIDE, INT8])
@pytest.mark.parametrize("small", [2**26, 0])
def test_numbers_that_are_not_finite_are_named(saved, tmp_path, monkeypatch, setting, small):
    _, config, params = saved
    head = params["language"]["head"].at[3, 5].set(jnp.nan)
    params = params | {"language": params["language"] | {"head": head}}
    native.save(tmp_path / "damaged", config, params, "{}")
    monkeypatch.setattr(assemble, "SMALL", small)
    with pytest.raises(CheckpointError, match=r"language.head has NaN or infinite values") as refusal:
        native.load(tmp_path / "damaged", "float32", weights=setting)
    assert "\n" not in str(refusal.value)


@pytest.fixture(scope="module", params=SETTINGS[1:])
def quantised_one(request, tmp_path_factory, saved):
    _, config, params = saved
    params = jax.jit(quantised.quantise_params, static_argnames="setting")(params, setting=request.param)
    directory = tmp_path_factory.mktemp("quantised") / "model"
    native.save(directory, config, params, "{}")
    return request.param, directory, params


def equal(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_a_quantised_checkpoint_is_loaded_bit_by_bit(quantised_one):
    setting, directory, params = quantised_one
    for weights in (None, setting):
        config, found = native.load(directory, "float32", weights=weights)
        assert equal(found, params)
    assert native.describe(directory) == (config, setting)


def test_activations_in_8_bits_are_chosen_when_loading(quantised_one):
    setting, directory, params = quantised_one
    for other in SETTINGS:
        if {setting, other} == {INT8, W8A8}:
            _, found = native.load(directory, "float32", weights=other)
            assert quantised.setting_of(found) == other
            assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(params)))
        elif setting != other:
            with pytest.raises(CheckpointError, match=f"stored as {setting}, of which {other} cannot be made") as error:
                native.load(directory, "float32", weights=other)
            assert "\n" not in str(error.value)


def test_wide_weights_are_quantised_when_loading(saved, quantised_one):
    setting, _, params = quantised_one
    assert equal(native.load(saved[0], "float32", weights=setting)[1], params)


def test_versions_of_the_format(saved, tmp_path):
    directory, config, params = saved
    about = json.loads((directory / "vxl2.json").read_text())
    assert (about.pop("version"), about.pop("weights")) == (2, "wide")
    old = shutil.copytree(directory, tmp_path / "old")
    (old / "vxl2.json").write_text(json.dumps(about))  # as version 1 was written
    assert equal(native.load(old, "float32"), (config, params))
    (old / "vxl2.json").write_text(json.dumps(about | {"version": 3}))
    with pytest.raises(CheckpointError, match="format 3 is newer"):
        native.load(old, "float32")
    (old / "vxl2.json").write_text(json.dumps(about | {"version": 2, "weights": "int2"}))
    with pytest.raises(CheckpointError, match="int2"):
        native.load(old, "float32")


def test_what_a_killed_process_left_is_removed(saved, tmp_path):
    _, config, params = saved
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in (f".new.{ended.pid}.part", f".new.{os.getpid()}0.part", f".other.{ended.pid}.part", ".new.part"):
        (tmp_path / name).mkdir()
    kept = f".new.{os.getppid()}.part"  # of a process that runs
    (tmp_path / kept).mkdir()
    native.save(tmp_path / "new", config, params, "{}")
    assert {path.name for path in tmp_path.iterdir()} == {"new", kept, f".other.{ended.pid}.part", ".new.part"}


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


@pytest.mark.parametrize("part", [2**22, 40])
def test_4_bit_numbers_share_bytes_in_any_shape(tmp_path, monkeypatch, part):
    monkeypatch.setattr(assemble, "PART", part)
    rng = np.random.default_rng(0)
    tree = {
        "a": {"four": jnp.asarray(rng.integers(-8, 8, (5, 6, 7)), jnp.int4), "scale": jnp.ones((5, 1, 7))},
        "eight": jnp.asarray(rng.integers(-127, 128, (9, 4)), jnp.int8),
        "wide": jnp.ones(3, jnp.bfloat16),
    }
    quantised_file.write(tmp_path, tree)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    found = jax.tree.unflatten(jax.tree.structure(tree), quantised_file.read(tmp_path, shapes))
    assert equal(found, tree) and jax.tree.map(lambda a: a.dtype, found) == jax.tree.map(lambda a: a.dtype, tree)
    data = 5 * 6 * 4 + 4 * 5 * 7 + 9 * 4 + 2 * 3
    assert data < (tmp_path / quantised_file.NAME).stat().st_size < data + 500
    with pytest.raises(CheckpointError, match="eight is"):
        next(quantised_file.read(tmp_path, shapes | {"eight": jax.ShapeDtypeStruct((9, 5), jnp.int8)}))
    with pytest.raises(CheckpointError, match="wide holds BF16"):
        next(quantised_file.read(tmp_path, shapes | {"wide": jax.ShapeDtypeStruct((3,), jnp.int8)}))


def test_a_damaged_quantised_file_is_refused_in_one_line(quantised_one, tmp_path):
    directory = shutil.copytree(quantised_one[1], tmp_path / "copy")
    file = directory / quantised_file.NAME
    content = file.read_bytes()
    for damaged in (content[:-1], content[:100], b""):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError) as refusal:
            native.load(directory, "float32")
        assert "\n" not in str(refusal.value) and str(directory) in str(refusal.value)
