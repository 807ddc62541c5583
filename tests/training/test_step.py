"""Trained and frozen parameters, learning rates, low-rank updates."""

import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from jax.tree_util import keystr, tree_leaves_with_path

from vxl2_jax.training import lora, step
from vxl2_jax.training.loss import loss, stage_loss
from vxl2_jax.training.settings import DataSettings, LoraSettings, Stage, TrainingSettings

compiled_loss = jax.jit(loss, static_argnums=1)
STAGE = Stage("all", ("vision", "dts", "projector", "language"), learning_rate=1e-3, steps=1)


def settings_of(stage=STAGE, **more):
    return TrainingSettings(out="", data=DataSettings(("x",)), stages=(stage,), **more)


@pytest.fixture(scope="module")
def toy():
    return toys.model(examples.CONFIG)


def run(toy, settings, steps=3, batch=None):
    """Parameters after some steps, and the metrics of each."""
    batch = batch or examples.batch()
    whole = step.attach_lora(toy.params, settings)
    (stage,) = settings.stages
    state, frozen, train_step = step.init_stage(whole, settings, stage, steps, stage_loss(toy.config, settings, stage))
    history = []
    for _ in range(steps):
        state, metrics = train_step(state, frozen, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return step.combine(state.params, frozen), history


def changed(before, after):
    """Names of the parameters that differ."""
    pairs = zip(tree_leaves_with_path(after), jax.tree.leaves(before), strict=True)
    return {keystr(path) for (path, a), b in pairs if not np.array_equal(a, b)}


@pytest.fixture(scope="module")
def trained(toy):
    """Twelve steps of all modules."""
    return run(toy, settings_of(), steps=12)


@pytest.fixture(scope="module")
def with_lora(toy):
    """Parameters with low-rank updates before and after eight steps, and the metrics."""
    stage = Stage("language", ("language",), learning_rate=1e-2, steps=1)
    settings = settings_of(stage, lora=LoraSettings(rank=4, targets=("query", "down")))
    return step.attach_lora(toy.params, settings), *run(toy, settings, steps=8)


def test_all_modules_are_trained_and_the_loss_falls(toy, trained):
    after, history = trained
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert {name.split("'")[1] for name in changed(toy.params, after)} == set(STAGE.train)
    assert history[0]["grad_norm"] > 0 and history[0]["learning_rate"] == pytest.approx(1e-3)


def test_a_stage_changes_its_modules_alone_each_at_its_learning_rate(toy):
    """Adam's first step has the size of the learning rate, whatever the gradient."""
    stage = Stage("two", ("projector", "language"), learning_rate=1e-3, steps=1, learning_rates={"projector": 1e-5})
    after, _ = run(toy, settings_of(stage), steps=1)

    def moved(module):
        return max(
            float(jnp.abs(a - b).max())
            for a, b in zip(*(jax.tree.leaves(tree[module]) for tree in (after, toy.params)), strict=True)
        )

    assert {name.split("'")[1] for name in changed(toy.params, after)} == {"projector", "language"}
    assert moved("language") == pytest.approx(1e-3, rel=0.02) and moved("projector") == pytest.approx(1e-5, rel=0.05)


def test_low_rank_updates_start_at_zero_and_only_they_are_trained(toy, with_lora):
    before, after, history = with_lora
    batch = examples.batch()
    np.testing.assert_array_equal(
        compiled_loss(before, toy.config, batch)[0], compiled_loss(toy.params, toy.config, batch)[0]
    )
    assert history[-1]["loss"] < history[0]["loss"]
    names = changed(before, after)
    assert names and all("lora" in name and ("query" in name or "down" in name) for name in names)


def test_merged_updates_compute_the_same(toy, with_lora):
    _, after, _ = with_lora
    merged = lora.merge(after)
    assert jax.tree.structure(merged) == jax.tree.structure(toy.params)
    batch = examples.batch()
    np.testing.assert_allclose(
        compiled_loss(merged, toy.config, batch)[0], compiled_loss(after, toy.config, batch)[0], rtol=1e-5
    )


@pytest.mark.slow
def test_bfloat16_keeps_trained_parameters_in_float32(toy, trained):
    after, history = run(toy, settings_of(compute_dtype="bfloat16"), steps=12)
    assert after["language"]["embed"].dtype == jnp.float32
    assert history[1]["loss"] == pytest.approx(trained[1][1]["loss"], rel=0.02)
