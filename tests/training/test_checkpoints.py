"""Checkpoints: complete or absent, the latest few, and only for the run that wrote them."""

from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from msgspec.structs import replace

from vxl2_jax.errors import CheckpointError, RequestError
from vxl2_jax.training import checkpoints, settings
from vxl2_jax.training.checkpoints import Checkpoints, identity
from vxl2_jax.training.step import TrainState

STATE = TrainState(
    jnp.int32(7), {"w": jnp.arange(6.0).reshape(2, 3)}, (jnp.float32(0.1), {"w": jnp.ones(3, jnp.bfloat16)})
)
EMPTY = jax.tree.map(jnp.zeros_like, STATE)


def numbers():
    return iter(grain.MapDataset.range(100).to_iter_dataset())


def written(folder: Path, steps=(1, 2, 3), identity=None):
    """A folder with a checkpoint after each of these numbers of items."""
    data = numbers()
    with Checkpoints(folder, 2, identity or {"batch": 2}) as saved:
        for step in steps:
            next(data)
            state = STATE._replace(step=jnp.int32(step))
            saved.save(step, state, data, {"stage": 0})
    return folder


def test_state_position_and_note_are_restored(tmp_path):
    written(tmp_path)
    data = numbers()
    with Checkpoints(tmp_path, 2, {"batch": 2}) as saved:
        found = saved.restore(EMPTY, data)
        assert saved.step == 3 and saved.note["stage"] == 0
    wanted = STATE._replace(step=jnp.int32(3))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    assert next(data) == 3


def test_only_the_latest_are_kept(tmp_path):
    written(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


@pytest.mark.parametrize("step", ["save", "wait_until_finished", "close"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("OUT_OF_RANGE: No space left on device")]
)
def test_a_disk_that_is_full_is_one_line(tmp_path, monkeypatch, step, error):
    """Orbax writes in the background: any later call may raise what went wrong."""

    def fail(*_, **__):
        raise error

    with pytest.raises(RequestError, match="No space left on device.; free some space"):
        with Checkpoints(tmp_path, 2, {}) as saved:
            saved._manager.close()
            monkeypatch.setattr(saved._manager, step, fail)
            if step == "save":
                saved.save(1, STATE, numbers(), {})
            saved.wait()


def test_an_empty_folder_holds_none(tmp_path):
    with Checkpoints(tmp_path, 2, {}) as saved:
        assert saved.step is None and saved.note is None


def test_leftovers_of_a_killed_process_are_not_a_checkpoint(tmp_path):
    written(tmp_path)
    part = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp-1"
    (part / "state").mkdir(parents=True)
    with Checkpoints(tmp_path, 2, {"batch": 2}) as saved:
        assert saved.step == 3
        saved.save(4, STATE, numbers(), {"stage": 0})
    assert not part.exists()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_another_run_is_refused_with_the_differences(tmp_path):
    written(tmp_path)
    with pytest.raises(RequestError, match="batch was 2 and is 4; .* another out"):
        Checkpoints(tmp_path, 2, {"batch": 4})
    with pytest.raises(RequestError, match=r"a was None and is 0; b was None and is 0 \(and 1 more\)"):
        Checkpoints(tmp_path, 2, dict.fromkeys("abc", 0))


def test_a_damaged_checkpoint_is_named(tmp_path):
    written(tmp_path)
    for file in (tmp_path / "checkpoints" / "3" / "note").iterdir():
        file.write_text("{")
    with pytest.raises(CheckpointError, match="checkpoints/3: damaged"):
        Checkpoints(tmp_path, 2, {"batch": 2})


def test_parameters_of_a_stage_are_kept(tmp_path):
    with Checkpoints(tmp_path, 2, {}) as saved:
        saved.save_stage(0, STATE.params)
        saved.save_stage(0, EMPTY.params)  # the same run would write the same again
        assert np.array_equal(saved.load_stage(0, EMPTY.params)["w"], STATE.params["w"])
        with pytest.raises(CheckpointError, match="stages/1: missing or damaged"):
            saved.load_stage(1, EMPTY.params)


def test_identity_holds_what_changes_the_result_and_nothing_else():
    run = settings.parse(settings.EXAMPLE)
    known = identity(run, "data", "model")
    for same in (
        {"out": "elsewhere"},
        {"log_every": 3},
        {"remat": False},
        {"mesh": settings.MeshSettings(2, 1)},
        {"checkpoint": settings.CheckpointSettings(1, 1)},
        {"data": replace(run.data, files=("b",), cache_gb=0.0)},
    ):
        assert identity(replace(run, **same), "data", "model") == known
    others = [
        identity(replace(run, **changed), "data", "model")
        for changed in (
            {"seed": 1},
            {"batch": 3},
            {"lora": None},
            {"max_grad_norm": 2.0},
            {"video": settings.VideoSettings(fps=2.0)},
            {"stages": (replace(run.stages[0], learning_rates={"language": 1.0}),)},
        )
    ]
    others += [identity(run, "other", "model"), identity(run, "data", "other")]
    assert all(other != known for other in others)


def test_runs_of_earlier_versions_resume_if_they_did_the_same(tmp_path):
    checkpoints._check_same(tmp_path, {"seed": 0}, {"seed": 0, "weights": "wide"})
    checkpoints._check_same(tmp_path, {"seed": 0}, {"seed": 0})
    with pytest.raises(RequestError, match="weights was wide and is int8"):
        checkpoints._check_same(tmp_path, {"seed": 0}, {"seed": 0, "weights": "int8"})
