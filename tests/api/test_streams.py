"""Standard output that is full, closed or in another encoding."""

import errno
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vxl2_jax
from vxl2_jax import cli, hardware
from vxl2_jax.errors import RequestError, ToyModelWarning

ROOT = Path(__file__).resolve().parents[2]
PLAN = ["plan", "--frames", "100", "--json"]


def failure(capsys, argv=PLAN) -> str:
    assert cli.main(argv) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("argv", [PLAN, [], ["--help"], ["--version"], ["ask", "--help"]], ids=" ".join)
@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_device_is_one_line(monkeypatch, capsys, argv, buffered):
    with open("/dev/full", "w") as full:
        full.reconfigure(write_through=not buffered)
        monkeypatch.setattr(sys, "stdout", full)
        assert "No space left" in failure(capsys, argv)


def test_errors_that_cannot_be_written_keep_the_code(monkeypatch):
    def fail(text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys.stderr, "write", fail)
    assert cli.main(["plan", "--frames", "0"]) == 2


def test_closed_output_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert "closed" in failure(capsys)


def test_closed_errors_do_not_stop_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(PLAN) == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_encoding_will_do(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    cli._prepare_streams()
    print("Is there a dög … 犬?", flush=True)
    assert raw.getvalue().endswith(b"\\u72ac?\n")


def test_a_backend_that_is_not_there_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Unable to initialize backend 'cuda': no such plug-in\nmore")

    monkeypatch.setattr(hardware.jax, "local_devices", fail)
    with jax.default_device(None), pytest.raises(RequestError, match="cuda") as caught:
        vxl2_jax.load()
    assert "\n" not in str(caught.value)


def run_python(code, **variables):
    """A process of its own: JAX reads its variables once."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("variable", "value"), [("JAX_PLATFORMS", "nonsense"), ("JAX_DEFAULT_DEVICE", "gpu")])
def test_no_command_runs_without_the_backend_that_is_asked_for(tmp_path, variable, value):
    (tmp_path / "video.mp4").write_bytes(b"no video")
    (tmp_path / "jobs").write_text('{"video": "video.mp4", "questions": ["What?"]}\n')
    row = {"question": "What?", "candidates": ["x", "y"], "answer": "x", "question_type": "ego", "video": "video.mp4"}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    (tmp_path / "samples").write_text('{"video": "video.mp4", "question": "What?", "answer": "it"}\n')
    stage = '[[stages]]\nname = "p"\ntrain = ["projector"]\nlearning_rate = 1e-4\nsteps = 1\n'
    (tmp_path / "train.toml").write_text('out = "trained"\n[data]\nfiles = ["samples"]\n' + stage)
    evaluate = "eval --benchmark mlvu --mode dense --data . --out run"
    commands = [
        "ask video.mp4 What?",
        "watch video.mp4 --out memory",
        "batch jobs --out answers",
        evaluate,
        f"{evaluate} --workers 2",
        "train --config train.toml",
        "convert nano native",
        "plan --frames 100 --device here",
        "doctor",
    ]
    code = f"import os; from vxl2_jax import cli; os.chdir({str(tmp_path)!r})\n"
    done = run_python(f"{code}for command in {commands}: print(cli.main(command.split()))", **{variable: value})
    assert done.stdout.split() == ["2"] * len(commands), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands) and all(line.endswith(f"unset {variable}") for line in lines)
    assert not any((tmp_path / name).exists() for name in ("memory", "run", "trained", "native"))


def test_a_variable_that_jax_does_not_understand_is_one_line():
    done = run_python(f"import sys; from vxl2_jax import cli; sys.exit(cli.main({PLAN}))", JAX_ENABLE_X64="nonsense")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "JAX_ENABLE_X64" in done.stderr


def test_compiled_programs_that_cannot_be_kept_are_one_line(capsys):
    with cli._warnings_as_lines():
        for name in ("jit_a", "jit_b"):
            warnings.warn(f"Error writing persistent compilation cache entry for '{name}': OSError: full", stacklevel=1)
        for name in ("a toy", "a toy again"):
            warnings.warn(name, ToyModelWarning, stacklevel=1)
    cache, toy = capsys.readouterr().err.splitlines()
    assert "jit_a" in cache and toy == "vxl2: a toy"


def test_numerics_do_not_depend_on_the_configuration_of_jax():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), hardware.numerics("float32"):
        assert (jnp.zeros(3) + np.arange(3)).dtype == jnp.float32
