"""Checkpoints: complete or not there, the latest few, and only for the run that they are of."""

import dataclasses
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vxl2_jax.errors import CheckpointError, RequestError
from vxl2_jax.training import settings
from vxl2_jax.training.checkpoints import Checkpoints, identity
from vxl2_jax.training.step import TrainState

STATE = TrainState(
    jnp.int32(7), {"w": jnp.arange(6.0).reshape(2, 3)}, (jnp.float32(0.1), {"w": jnp.ones(3, jnp.bfloat16)})
)
EMPTY = jax.tree.map(jnp.zeros_like, STATE)


def numbers():
    return iter(grain.MapDataset.range(100).to_iter_dataset())


def written(folder: Path, steps=(1, 2, 3), identity=None):
    """A folder with checkpoints after that many numbers each."""
    data = numbers()
    with Checkpoints(folder, 2, identity or {"batch": 2}) as kept:
        for step in steps:
            next(data)
            state = STATE._replace(step=jnp.int32(step))
            kept.save(step, state, data, {"stage": 0})
    return folder


def test_state_place_and_note_come_back_as_they_were(tmp_path):
    written(tmp_path)
    data = numbers()
    with Checkpoints(tmp_path, 2, {"batch": 2}) as kept:
        found = kept.restore(EMPTY, data)
        assert kept.step == 3 and kept.note["stage"] == 0
    wanted = STATE._replace(step=jnp.int32(3))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    assert next(data) == 3


def test_only_the_latest_stay(tmp_path):
    written(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_an_empty_folder_holds_none(tmp_path):
    with Checkpoints(tmp_path, 2, {}) as kept:
        assert kept.step is None and kept.note is None


def test_what_a_kill_left_is_not_taken_for_a_checkpoint(tmp_path):
    written(tmp_path)
    part = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp-1"
    (part / "state").mkdir(parents=True)
    with Checkpoints(tmp_path, 2, {"batch": 2}) as kept:
        assert kept.step == 3
        kept.save(4, STATE, numbers(), {"stage": 0})
    assert not part.exists()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_another_run_is_refused_and_told_apart(tmp_path):
    written(tmp_path)
    with pytest.raises(
        RequestError, match="holds another run: batch was 2 and is 4; set these back, or give another out"
    ):
        Checkpoints(tmp_path, 2, {"batch": 4})
    with pytest.raises(RequestError, match=r"a was None and is 0; b was None and is 0 \(and 1 more\)"):
        Checkpoints(tmp_path, 2, dict.fromkeys("abc", 0))


def test_a_damaged_checkpoint_is_named(tmp_path):
    written(tmp_path)
    for file in (tmp_path / "checkpoints" / "3" / "note").iterdir():
        file.write_text("{")
    with pytest.raises(CheckpointError, match="checkpoints/3: damaged"):
        Checkpoints(tmp_path, 2, {"batch": 2})


def test_what_a_stage_has_learnt_is_kept(tmp_path):
    with Checkpoints(tmp_path, 2, {}) as kept:
        kept.keep_stage(0, STATE.params)
        kept.keep_stage(0, EMPTY.params)  # the same run would write the same again
        assert np.array_equal(kept.stage(0, EMPTY.params)["w"], STATE.params["w"])
        with pytest.raises(CheckpointError, match="stages/1: missing or damaged"):
            kept.stage(1, EMPTY.params)


def test_identity_holds_what_changes_the_curve_and_nothing_else():
    run = settings.parse(settings.EXAMPLE)
    known = identity(run, "data", "model")
    for same in (
        {"out": "elsewhere"},
        {"log_every": 3},
        {"remat": False},
        {"mesh": settings.Mesh(2, 1)},
        {"checkpoint": settings.Checkpoint(1, 1)},
        {"data": dataclasses.replace(run.data, files=("b",), cache_gb=0.0)},
    ):
        assert identity(dataclasses.replace(run, **same), "data", "model") == known
    others = [
        identity(dataclasses.replace(run, **changed), "data", "model")
        for changed in (
            {"seed": 1},
            {"batch": 3},
            {"lora": None},
            {"clip": 2.0},
            {"video": settings.Video(fps=2.0)},
            {"stages": (dataclasses.replace(run.stages[0], rates={"language": 1.0}),)},
        )
    ]
    others += [identity(run, "other", "model"), identity(run, "data", "other")]
    assert all(other != known for other in others)
