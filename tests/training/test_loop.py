"""Whole training runs: killed anywhere and resumed, they give the same result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_data import write_clip

from vxl2_jax.checkpoints import huggingface
from vxl2_jax.errors import RequestError
from vxl2_jax.storage import locking
from vxl2_jax.training import loop, settings
from vxl2_jax.training.finetune import train
from vxl2_jax.training.loop import TrainingLog
from vxl2_jax.training.step import TrainState

ROOT = Path(__file__).resolve().parents[2]
STAGES = """
[[stages]]
name = "eyes"
train = ["projector"]
learning_rate = 1e-2
steps = 40
[[stages]]
name = "words"
train = ["language"]
learning_rate = 1e-2
learning_rates = { language = 5e-3 }
epochs = 20
warmup = 5
"""
REST = '[lora]\nrank = 2\ntargets = ["query", "up"]\n[checkpoint]\nevery = 15\n'
STEPS = 100  # 40, and twenty epochs of three batches

# Dies while a checkpoint is half written: before its position in the data, and before the final rename.
DIE_WHILE_SAVING = """
import os, signal, sys
import grain
from vxl2_jax.cli import main
left, save = int(sys.argv.pop(1)), grain.checkpoint.CheckpointHandler.save
def die(self, *args, **kwargs):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return save(self, *args, **kwargs)
grain.checkpoint.CheckpointHandler.save = die
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_dir):
    """Settings for 100 steps in two stages; all clips have one length, so that each stage compiles once."""
    folder = tmp_path_factory.mktemp("kills")
    for number in range(3):
        write_clip(folder / f"{number}.mp4", 8, number)
    rows = [
        {
            "video": f"{number % 3}.mp4",
            "question": f"is there a {('dog', 'cat')[number % 2]}?",
            "answer": ("yes", "no")[number // 3],
        }
        for number in range(5)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("straight", "killed"):
        (folder / f"{name}.toml").write_text(
            f'model = "{tiny_dir}"\nout = "{folder / name}"\nbatch = 2\nlog_every = 2\n'
            f'[data]\nfiles = ["train.jsonl"]\n{STAGES}{REST}'
        )
    return folder


def command(folder, name, die_at_save=0):
    program = ["-c", DIE_WHILE_SAVING, str(die_at_save)] if die_at_save else ["-m", "vxl2_jax"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *program, "train", "--config", str(folder / f"{name}.toml")],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
    )


def finish(process):
    """(exit code, output)."""
    out, err = process.communicate(timeout=400)
    return process.returncode, out + err


def lines(folder, name):
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def wait_for_step(process, folder, name, step):
    """Wait until the metrics have a line of the step."""
    path = folder / name / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.02)
    pytest.fail(f"ended before step {step}: {process.communicate()}")


@pytest.fixture(scope="module")
def straight(folder):
    """A run that was not interrupted."""
    code, output = finish(command(folder, "straight"))
    assert code == 0, output
    assert f"{folder / 'straight' / 'model'}: complete" in output
    return folder / "straight"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_in_every_way_gives_the_same_result(folder, straight):
    # Killed while the second checkpoint (step 30) is written: the first one (step 15) remains.
    assert finish(command(folder, "killed", die_at_save=2))[0] == -signal.SIGKILL
    left = [path.name for path in (folder / "killed" / "checkpoints").iterdir()]
    assert "15" in left and "30" not in left and any(name.startswith("30.") for name in left)
    # Killed between checkpoints, in the second stage, with an incomplete line of metrics.
    process = command(folder, "killed")
    wait_for_step(process, folder, "killed", 66)
    process.kill()
    assert "resuming after step 15 of 100" in finish(process)[1]
    with (folder / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 68, "sta')
    # Stopped by a signal: saves a checkpoint first.
    process = command(folder, "killed")
    wait_for_step(process, folder, "killed", 80)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 130 and "resume" in output, output
    # Resumed once more, to the end.
    code, output = finish(command(folder, "killed"))
    assert code == 0, output

    def timeless(line):
        return {key: value for key, value in line.items() if key not in ("seconds", "tokens_per_s")}

    assert [timeless(line) for line in lines(folder, "killed")] == [
        timeless(line) for line in lines(folder, "straight")
    ]
    assert len(lines(folder, "straight")) == STEPS // 2
    one, other = ((folder / name / "model" / "model.safetensors").read_bytes() for name in ("killed", "straight"))
    assert one == other


@pytest.mark.timeout(900)
def test_metrics_show_stages_learning_rates_and_a_falling_loss(folder, straight):
    written = lines(folder, "straight")
    assert [line["stage"] for line in written] == ["eyes"] * 20 + ["words"] * 30
    assert written[0]["learning_rate"] > written[18]["learning_rate"] > written[19]["learning_rate"]
    assert written[-1]["loss"] < 0.9 * written[0]["loss"]
    assert all(line["skipped"] == 0 and line["tokens"] > 0 for line in written)


@pytest.mark.timeout(900)
def test_only_trained_parameters_change(straight, tiny_dir):
    (_, before), (_, after) = (huggingface.load(path, "float32") for path in (tiny_dir, straight / "model"))

    def same(*path):
        return np.array_equal(*(_leaf(tree, path) for tree in (before, after)))

    layers = ("language", "layers")
    assert same("vision", "position") and same("language", "embed") and same(*layers, "key", "kernel")
    assert not same("projector", "linear_out", "kernel")
    assert not same(*layers, "query", "kernel") and not same(*layers, "up", "kernel")
    assert same(*layers, "query", "bias")
    assert (straight / "model" / "tokenizer.json").read_bytes() == (tiny_dir / "tokenizer.json").read_bytes()


def _leaf(tree, path):
    for name in path:
        tree = tree[name]
    return np.asarray(tree)


@pytest.mark.timeout(900)
def test_a_complete_run_is_kept_and_another_is_refused(folder, straight):
    messages = []
    run = settings.read(folder / "straight.toml")
    assert train(run, TrainingLog(info=messages.append)) == straight / "model"
    assert "attention: reference" in messages[0] and messages[1] == f"{straight / 'model'} is complete"
    text = (folder / "straight.toml").read_text()
    for changed, expected in (
        (text.replace("batch = 2", "batch = 1"), "holds another run: batch was 2 and is 1"),
        (text.replace("steps = 40", "steps = 41"), r"stages\[0\].steps was 40 and is 41"),
        (text.replace("rank = 2", "rank = 3"), "lora.rank was 2 and is 3"),
    ):
        (folder / "other.toml").write_text(changed)
        with pytest.raises(RequestError, match=expected):
            train(settings.read(folder / "other.toml"))


def test_another_model_is_not_overwritten(config, tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    with pytest.raises(RequestError, match="not of this run"):
        train(settings.read(config()))


def test_an_out_that_cannot_be_created_is_named(config, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RequestError, match="run: cannot be created"):
        train(settings.read(config()))


def fake_step(losses):
    """A step module that trains nothing and returns these losses in turn, without compilation."""

    def init_stage(params, settings, stage, steps, loss, mesh):
        def train_step(state, frozen, batch):
            count = int(state.step)
            written = {"loss": losses[count % len(losses)], "accuracy": 0.5, "grad_norm": 1.0, "learning_rate": 0.1}
            targets = float((batch.targets >= 0).sum())
            return TrainState(np.int32(count + 1), state.params, ()), {
                name: np.float32(value) for name, value in {**written, "tokens": targets}.items()
            }

        return TrainState(np.int32(0), {}, ()), params, train_step

    return SimpleNamespace(
        TrainState=TrainState,
        TrainStep=None,
        Loss=None,
        init_stage=init_stage,
        attach_lora=lambda params, settings: params,
        combine=lambda trained, params: params,
        partition=lambda params, settings, stage: ({}, params),
    )


def test_a_loss_of_nan_stops_the_run_without_a_checkpoint(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "step", fake_step([1.0, 1.0, 1.0, float("nan")]))
    with pytest.raises(RequestError, match="step 4 .* nan .* lower learning_rate for stage all"):
        train(settings.read(config(rest="[checkpoint]\nevery = 2")))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
    assert len(lines(tmp_path, "run")) == 3 and not (tmp_path / "run" / "model").exists()


def test_samples_without_a_video_are_reported_and_counted(config, tmp_path, data, monkeypatch):
    monkeypatch.setattr(loop, "step", fake_step([1.0]))
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    (broken / "0.mp4").unlink()  # of two samples
    path = config()
    path.write_text(path.read_text().replace(str(data), str(broken)))
    messages, written, steps = [], [], []
    train(
        settings.read(path),
        TrainingLog(
            warning=messages.append, metrics=written.append, step=lambda done, total: steps.append((done, total))
        ),
    )
    assert [text.split(": ")[0] for text in messages] == ["skipped"] * 2 and "0.mp4" in messages[0]
    assert [line["skipped"] for line in written] == [2] * 6 and written == lines(tmp_path, "run")
    assert steps == [(done, 6) for done in range(1, 7)]


def test_epochs_are_counted_in_steps(config, tmp_path, monkeypatch):
    """Seven samples in batches of two are four steps per epoch."""
    monkeypatch.setattr(loop, "step", fake_step([1.0]))
    train(settings.read(config(stages='[[stages]]\nname = "s"\ntrain = ["language"]\nlearning_rate = 1\nepochs = 3\n')))
    assert lines(tmp_path, "run")[-1]["step"] == 12


def test_two_processes_cannot_write_one_run(config, tmp_path):
    (tmp_path / "run").mkdir()
    with (
        locking.open_locked(tmp_path / "run" / "metrics.jsonl"),
        pytest.raises(RequestError, match="another process is writing"),
    ):
        train(settings.read(config()))


@pytest.mark.parametrize("name", ["checkpoints", "stages", "model"])
def test_that_a_run_can_be_written_is_checked_before_it_starts(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(RequestError, match=name), loop.open_metrics(tmp_path):
        pass
