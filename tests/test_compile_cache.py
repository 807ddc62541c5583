"""Where compiled programs are kept: in a folder that nobody else can write, unless the user has chosen one."""

import os

import jax
import pytest

from vxl2_jax import compile_cache, cpu

OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache folder of a user, and JAX without one."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_each_version_and_number_of_cores_has_a_private_folder(home, monkeypatch):
    folders = set()
    for cores, version in ((1, "0.11.0"), (3, "0.11.0"), (3, "0.12.0")):
        monkeypatch.setattr(cpu, "cpu_cores", lambda cores=cores: cores)
        monkeypatch.setattr(jax, "__version__", version)
        jax.config.update("jax_compilation_cache_dir", None)
        found = compile_cache.enable()
        assert jax.config.jax_compilation_cache_dir == str(found) and home in found.parents
        assert all(not place.stat().st_mode & 0o077 for place in (found, found.parent, found.parents[1]))
        folders.add(found)
    assert len(folders) == 3


def test_a_folder_that_the_user_set_is_kept(home):
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    assert compile_cache.enable() is None
    assert jax.config.jax_compilation_cache_dir == "elsewhere" and not list(home.iterdir())


def test_a_cache_that_the_user_turned_off_stays_off(home):
    jax.config.update("jax_enable_compilation_cache", False)
    assert compile_cache.enable() is None and not list(home.iterdir())


@pytest.mark.parametrize("root", ["", "relative"])
def test_nothing_is_put_into_the_current_folder(home, monkeypatch, root):
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", root)
    monkeypatch.setenv("HOME", str(home / "home"))
    assert compile_cache.enable() is not None and [path.name for path in home.iterdir()] == ["home"]


def without_a_home(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(home.relative_to("/")))


def open_to_others(home, monkeypatch):
    compile_cache.folder().mkdir(parents=True)
    (home / "vxl2_jax").chmod(0o777)


def of_another_user(home, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: os.stat(home).st_uid + 1)


def a_file_in_its_place(home, monkeypatch):
    (home / "vxl2_jax").write_text("")


@pytest.mark.parametrize("spoil", [open_to_others, of_another_user, a_file_in_its_place, without_a_home])
def test_programs_are_never_taken_from_where_others_can_put_them(home, monkeypatch, caplog, spoil):
    spoil(home, monkeypatch)
    assert compile_cache.enable() is None and jax.config.jax_compilation_cache_dir is None
    assert len(caplog.records) == 1 and home.name in caplog.text
