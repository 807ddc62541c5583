"""The first run on a new machine: steps with time limits, and what is kept of them."""

import json
import sys
import time
from pathlib import Path

import pytest

from experiments import first_light
from experiments.first_light import Step


def step(name, code, limit=60):
    return Step(name, limit, ("-c", code), ("-c", code))


@pytest.fixture
def steps(monkeypatch):
    """Three steps that end well, badly and never; nothing is an accelerator, and the commit is the same."""
    found = (
        step("good", "print('kernels agree')"),
        step("bad", "raise SystemExit(3)"),
        step("slow", "import time; time.sleep(60)", 1),
    )
    monkeypatch.setattr(first_light, "STEPS", found)
    monkeypatch.setattr(first_light, "is_accelerator", lambda: False)
    monkeypatch.setattr(first_light.machine, "commit", lambda: "abc")
    return found


def run(out, *more):
    code = first_light.main(["--out", str(out), *more])
    document = json.loads((out / "first_light.json").read_text())
    return code, {one["name"]: one for one in document["steps"]}


def test_a_step_that_fails_or_hangs_costs_only_its_own(steps, tmp_path, capsys):
    code, found = run(tmp_path)
    assert code == 1 and [found[name]["exit_code"] for name in ("good", "bad", "slow")] == [0, 3, None]
    assert found["slow"]["stopped"] and found["slow"]["seconds"] < 20
    text = (tmp_path / "first_light.md").read_text()
    assert "kernels agree" in text and "exit code 3" in text and "stopped" in text
    assert "bad failed" in capsys.readouterr().err


def test_steps_that_ended_well_are_not_run_again(steps, tmp_path, monkeypatch):
    run(tmp_path, "--only", "good")
    ran = []
    original = first_light.run_step
    monkeypatch.setattr(first_light, "run_step", lambda one, *rest: ran.append(one.name) or original(one, *rest))
    assert run(tmp_path, "--only", "good,bad")[0] == 1 and ran == ["bad"]
    run(tmp_path, "--only", "good", "--again")
    assert ran == ["bad", "good"]
    monkeypatch.setattr(first_light.machine, "commit", lambda: "def")
    run(tmp_path, "--only", "good")
    assert ran == ["bad", "good", "good"]


def test_a_stopped_step_takes_its_workers_with_it(steps, tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    worker = "import time; time.sleep(120)"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {worker!r}]); open({str(pid)!r}, 'w').write(str(p.pid)); p.wait()"
    monkeypatch.setattr(first_light, "STEPS", (step("parent", code, 3),))
    assert run(tmp_path)[0] == 1
    stat = Path("/proc", pid.read_text(), "stat")
    deadline = time.monotonic() + 10
    while stat.exists() and ") Z " not in stat.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not stat.exists() or ") Z " in stat.read_text()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"commit": "abc"}'])
def test_a_damaged_record_is_made_again(steps, tmp_path, content):
    (tmp_path / "first_light.json").write_text(content)
    assert run(tmp_path, "--only", "good")[0] == 0


def test_a_folder_that_cannot_be_made_is_one_line(steps, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert first_light.main(["--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_step_begins_when_the_time_is_used(steps, tmp_path, capsys):
    assert first_light.main(["--out", str(tmp_path), "--limit_s", "1"]) == 0
    assert "good: not run" in capsys.readouterr().err


def test_an_unknown_step_is_named(steps, capsys):
    assert first_light.main(["--only", "good,best"]) == 2 and "unknown best" in capsys.readouterr().err


def test_all_steps_fit_eight_minutes_and_have_results_of_their_own(capsys):
    assert sum(one.limit_s for one in first_light.STEPS) <= first_light.TOTAL_S == 480
    assert first_light.main(["--list"]) == 0
    assert capsys.readouterr().out.count("\n") == len(first_light.STEPS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_rehearsal_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    code, found = run(tmp_path, "--limit_s", "900")
    assert code == 0 and list(found) == ["doctor", "attention", "vision", "decoding", "copies"], found
    assert sys.executable not in (tmp_path / "first_light.json").read_text()
