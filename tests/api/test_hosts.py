"""Two processes that run one model together, as two hosts do, compared with one."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import vxl2_jax as vxl2
from vxl2_jax import hosts
from vxl2_jax.checkpoints import fetch
from vxl2_jax.errors import RequestError
from vxl2_jax.memory import VideoMemory
from vxl2_jax.storage.memory_writer import partial_path

ROOT = Path(__file__).resolve().parents[2]
CLIP = next(fetch.NANO.parent.rglob("*.mp4"))
QUESTION = "What appears at 40 seconds?"
WATCH = ("watch", CLIP, "--fps", "4", "--mesh", "sequence=2")  # three calls of two strides


def started(*arguments, devices=1):
    """The processes of the same command on two hosts."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "vxl2_jax", *map(str, arguments), "--hosts"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return [subprocess.Popen([*command, f"localhost:{port},2,{number}"], **pipes) for number in range(2)]


def ended(processes):
    return [(*process.communicate(timeout=500), process.returncode) for process in processes]


def levels(memory):
    """Keys and values of both levels, in natural order and without padding."""
    layout, dense, found = memory.layout, memory.dense_on_host().streams, []
    lengths = layout.visual_length, layout.global_length, memory.sparse_length
    for cache, length in zip((*dense, memory.sparse_on_host()), lengths, strict=True):
        found += [np.asarray(part)[:, :, :length] for part in (cache.k, cache.v)]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hosts_answer_as_one_does(tmp_path):
    asked = ("ask", CLIP, QUESTION, "--mesh", "model=2,sequence=2", "--json", "--plot", tmp_path / "answer.png")
    (first, second) = ended(started(*asked, devices=2))
    assert first[2] == second[2] == 0, first[1] + second[1]
    assert not second[0] and (tmp_path / "answer.png").exists()
    model = vxl2.load("nano")
    answer = model.ask(model.watch(CLIP), QUESTION)
    assert f'"{answer.text}"' in first[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_host_that_is_killed_ends_the_other_and_the_same_command_resumes(tmp_path):
    out = tmp_path / "memory"
    processes = started(*WATCH, "--out", out)
    while not partial_path(out).exists() or partial_path(out).stat().st_size < 2**20:
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.02)
    processes[1].kill()
    (first, _) = ended(processes)
    assert first[2] == 1 and "another host has stopped" in first[1], first[1]
    assert not out.exists() and partial_path(out).exists()
    (first, second) = ended(started(*WATCH, "--out", out))
    assert first[2] == second[2] == 0, first[1] + second[1]
    one = vxl2.load("nano").watch(CLIP, fps=4)
    for a, b in zip(levels(VideoMemory.load(out)), levels(one), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("text", ["here", "localhost:1", "localhost:1,2,2", "localhost,2,0", ""])
def test_hosts_that_are_none_are_refused(text):
    with pytest.raises(RequestError, match="hosts must be auto or ADDRESS:PORT,COUNT,NUMBER"):
        hosts.start(text)


@pytest.mark.slow
def test_an_error_is_one_line_of_each_host():
    for output, errors, code in ended(started("ask", "no such film.mkv", QUESTION, "--mesh", "sequence=2")):
        lines = [line for line in errors.splitlines() if line.startswith("vxl2: ")]
        assert code == 2 and not output.strip() and len(lines) == 1, errors
        assert "no such film.mkv" in lines[0] and "Traceback" not in errors
