"""A kernel is tried once per machine, in a process that may hang or crash without harm."""

import json
import logging
import os
import subprocess
import sys
import types

import jax
import pytest

from pallas_kernels import attention
from vxl2_jax import compile_cache, kernel_trial

ASKED = {"dtype": "bfloat16", "width": 128}


def device(platform):
    return types.SimpleNamespace(
        platform=platform, device_kind="a card", client=types.SimpleNamespace(platform_version="1")
    )


@pytest.fixture
def kernel():
    from pallas_kernels.attention.kernel import kernel_for

    return kernel_for("ampere", "NVIDIA A100-SXM4-40GB")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder for verdicts."""
    monkeypatch.setattr(compile_cache, "kept", lambda name: tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """The kernels whose self-test ran in this process; all agree."""
    seen = []
    monkeypatch.setattr(attention, "self_test", lambda kernel, **_: seen.append(kernel.name))
    return seen


def child(monkeypatch, code):
    """Put a program in place of the one that tests a kernel. Returns a list that grows with each start."""
    started = []

    def command(arguments):
        started.append(arguments)
        return [sys.executable, "-c", code]

    monkeypatch.setattr(kernel_trial, "_command", command)
    return started


@pytest.mark.parametrize("verdict", [None, "relative error 2 against the reference"])
def test_a_verdict_is_kept(kernel, calls, monkeypatch, verdict):
    printed = json.dumps({"verdict": verdict})
    started = child(monkeypatch, f"print('ready'); print({printed!r})")
    found = [kernel_trial.trial(kernel, **ASKED, device=device("gpu")) for _ in range(2)]
    assert found == [verdict] * 2 and len(started) == 1 and not calls
    assert started[0] == ("ampere", "bfloat16", 128, "bfloat16")
    # Another cache, another version of the driver: another test.
    kernel_trial.trial(kernel, **ASKED, cache_dtype="int8", device=device("gpu"))
    other = device("gpu")
    other.client.platform_version = "2"
    kernel_trial.trial(kernel, **ASKED, device=other)
    assert len(started) == 3


def test_a_kernel_that_hangs_is_given_up(kernel, monkeypatch):
    monkeypatch.setattr(kernel_trial, "SECONDS", 1)
    child(monkeypatch, "import time; print('ready', flush=True); time.sleep(60)")
    assert kernel_trial.trial(kernel, **ASKED, device=device("gpu")) == "it did not end within 1 s"


def test_a_kernel_that_ends_its_process_is_reported(kernel, monkeypatch):
    child(monkeypatch, "import os, sys; print('ready', flush=True); print('bad address', file=sys.stderr); os._exit(7)")
    found = kernel_trial.trial(kernel, **ASKED, device=device("gpu"))
    assert found == "it ended its process with exit code 7 (bad address)"


@pytest.mark.parametrize("code", ["raise SystemExit('no memory')", "print('not')"])
def test_without_a_device_for_another_process_the_test_runs_here(kernel, calls, monkeypatch, code):
    child(monkeypatch, code)
    assert kernel_trial.trial(kernel, **ASKED, device=device("gpu")) is None and calls == ["ampere"]


def test_a_tpu_kernel_is_tested_here_once(kernel, calls, monkeypatch):
    started = child(monkeypatch, "")
    for _ in range(2):
        assert kernel_trial.trial(kernel, **ASKED, device=device("tpu")) is None
    assert calls == ["ampere"] and not started


def test_a_test_that_never_ended_is_known_to_the_next_process(kernel, calls, folder):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    kernel_trial.trial(kernel, **ASKED, device=device("tpu"))
    (record,) = folder.iterdir()
    record.write_text(json.dumps({"process": gone.pid}))
    found = kernel_trial.trial(kernel, **ASKED, device=device("tpu"))
    assert "did not end" in found and str(record) in found and len(calls) == 1
    # This process has begun none, so an earlier one had its number, as in a container that was started again.
    record.write_text(json.dumps({"process": os.getpid()}))
    assert "did not end" in kernel_trial.trial(kernel, **ASKED, device=device("tpu"))
    # One that is going on elsewhere says nothing.
    record.write_text(json.dumps({"process": os.getppid()}))
    assert kernel_trial.trial(kernel, **ASKED, device=device("tpu")) is None and len(calls) == 2


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_too_little_memory_says_nothing_of_a_kernel(kernel, folder, monkeypatch, platform):
    full = "XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    printed = json.dumps({"verdict": full})
    child(monkeypatch, f"print('ready'); print({printed!r})")
    monkeypatch.setattr(attention, "self_test", lambda *_, **__: full)
    assert kernel_trial.trial(kernel, **ASKED, device=device(platform)) == full and not list(folder.iterdir())
    # There may be enough for this process where there is not for another one.
    monkeypatch.setattr(attention, "self_test", lambda *_, **__: None)
    assert kernel_trial.trial(kernel, **ASKED, device=device(platform)) is None and len(list(folder.iterdir())) == 1


def test_an_interrupted_test_leaves_no_verdict(kernel, folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(attention, "self_test", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernel_trial.trial(kernel, **ASKED, device=device("tpu"))
    assert not list(folder.iterdir())


def test_a_test_that_takes_too_long_here_is_announced(kernel, monkeypatch, caplog):
    import time

    monkeypatch.setattr(kernel_trial, "SECONDS", 0.05)
    monkeypatch.setattr(attention, "self_test", lambda *_, **__: time.sleep(0.5))
    with caplog.at_level(logging.WARNING):
        kernel_trial.trial(kernel, **ASKED, device=device("tpu"))
    assert "has not ended" in caplog.text and "stop this program" in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[]", '{"verdict"', '{"process": "x"}', "\udcff"])
def test_a_damaged_verdict_is_made_again(kernel, calls, folder, content):
    kernel_trial.trial(kernel, **ASKED, device=device("tpu"))
    (record,) = folder.iterdir()
    record.write_bytes(content.encode(errors="surrogateescape"))
    assert kernel_trial.trial(kernel, **ASKED, device=device("tpu")) is None and len(calls) == 2


def test_nothing_is_kept_where_compiled_programs_are_not(kernel, calls, monkeypatch):
    monkeypatch.setattr(compile_cache, "kept", lambda name: None)
    for _ in range(2):
        assert kernel_trial.trial(kernel, **ASKED, device=device("tpu")) is None
    assert len(calls) == 2


def test_the_program_prints_a_verdict():
    command = kernel_trial._command(("reference", "float32", 16, "float32"))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0] == "ready" and json.loads(lines[-1]) == {"verdict": None}, done.stderr


def test_the_folder_of_verdicts_is_private(tmp_path, monkeypatch):
    monkeypatch.undo()
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert compile_cache.kept("kernels") is None and not list(tmp_path.iterdir())
        jax.config.update("jax_compilation_cache_dir", "elsewhere")
        found = compile_cache.kept("kernels")
        assert found == tmp_path / "vxl2_jax" / "kernels" and not found.stat().st_mode & 0o077
        found.chmod(0o777)
        assert compile_cache.kept("kernels") is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
