"""Weights in 8 and 4 bits, from loading to answers, and what refuses them."""

import json
import types
from dataclasses import replace

import jax
import numpy as np
import pytest

import vxl2_jax as vxl2
from vxl2_jax import hardware
from vxl2_jax.models.quantised import SETTINGS, is_quantised
from vxl2_jax.runtime import fingerprint_of, weights_in
from vxl2_jax.tensor_parallel import MeshShape

from .conftest import ASKED, noise


@pytest.fixture(scope="module")
def int8(model_dir):
    return vxl2.load(model_dir, weights="int8")


def test_a_converted_model_answers_as_one_quantised_while_loading(command, model_dir, int8, tmp_path):
    assert command("convert", model_dir, tmp_path / "m", "--weights", "int8", "--dtype", "float32", "--quiet").code == 0
    stored = vxl2.load(tmp_path / "m")
    assert (stored.weights, stored.fingerprint, stored.weights_bytes) == ("int8", int8.fingerprint, int8.weights_bytes)
    first, second = (model.watch(noise(40)) for model in (int8, stored))
    assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))
    assert int8.ask(first, "is there 7?", **ASKED) == stored.ask(second, "is there 7?", **ASKED)


def test_a_memory_names_the_weights_that_made_it(model, int8, tmp_path):
    memory = int8.watch(noise(40))
    assert memory.dense_on_device().visual.k.dtype == int8.dtype == "float32"
    assert weights_in(memory.model) == "int8" and weights_in(model.fingerprint) == "wide"
    memory.save(tmp_path / "a.memory")
    loaded = vxl2.VideoMemory.load(tmp_path / "a.memory")
    assert int8.ask(loaded, "what?", **ASKED) == int8.ask(memory, "what?", **ASKED)
    with pytest.raises(vxl2.RequestError, match="wide weights; load the model that made it, in float32, int8 weights"):
        model.ask(loaded, "what?")
    with pytest.raises(vxl2.RequestError, match="another model"):
        model.watch_more(memory, noise(4)[0], np.arange(40.0, 44.0))


def test_settings_give_other_fingerprints_and_fewer_bytes(model_dir, model):
    models = [vxl2.load(model_dir, weights=weights) for weights in SETTINGS]
    assert [one.weights for one in models] == list(SETTINGS) and models[0].fingerprint == model.fingerprint
    assert len({one.fingerprint for one in models}) == len(SETTINGS)
    wide, int8, w8a8, int4 = (one.weights_bytes for one in models)
    assert int8 == w8a8 < wide and int4 < wide


def test_a_memory_of_w8a8_belongs_to_its_choice_of_wide_activations(model_dir):
    model = vxl2.load(model_dir, weights="w8a8")

    def narrow(node):  # as W8A8 was before some activations stayed wide
        return replace(node, activations=True) if is_quantised(node) else node

    params = jax.tree.map(narrow, model.params, is_leaf=is_quantised)
    other = fingerprint_of(model.config, params)
    assert other != model.fingerprint and weights_in(other) == weights_in(model.fingerprint) == "w8a8"


def test_an_unknown_setting_is_refused_in_one_line(command, model_dir):
    with pytest.raises(vxl2.RequestError, match="^weights must be wide, int8, w8a8, int4, auto or None, not 'int2'$"):
        vxl2.load(model_dir, weights="int2")
    with pytest.raises(vxl2.RequestError, match="weights must be"):
        vxl2.load(model_dir, weights="8")
    assert "--weights: invalid choice: 'int2'" in command("ask", "a.mp4", "?", "--weights", "int2").err


def test_auto_is_wide_on_a_cpu_and_on_a_device_of_unknown_memory(model_dir, monkeypatch):
    assert vxl2.load(model_dir, weights="auto").weights_reason == "wide (on a CPU)"
    monkeypatch.setattr(hardware, "memory_bytes", lambda device: None)
    monkeypatch.setattr(
        "vxl2_jax.loading.hardware.device", lambda: types.SimpleNamespace(platform="tpu", device_kind="TPU")
    )

    from vxl2_jax import loading

    config_only = loading._fitting_weights(model_dir, None, np.dtype("float32"), "reference", MeshShape())
    assert config_only == ("wide", "the device's memory is unknown")


def test_quantised_weights_are_not_trained(command, model_dir, tmp_path):
    command("convert", model_dir, tmp_path / "m", "--weights", "int4", "--dtype", "float32", "--quiet")
    (tmp_path / "data.jsonl").write_text(json.dumps({"video": "a.mp4", "question": "q", "answer": "a"}))
    (tmp_path / "train.toml").write_text(
        f'model = "{tmp_path}/m"\nout = "{tmp_path}/run"\n[data]\nfiles = ["{tmp_path}/data.jsonl"]\n'
        '[[stages]]\nname = "s"\ntrain = ["language"]\nlearning_rate = 1e-3\nsteps = 1\n'
    )
    ended = command("train", "--config", tmp_path / "train.toml")
    assert ended.code == 2 and ended.err.count("\n") == 1 and "has int4 weights, which cannot be trained" in ended.err


REAL = ("--model", "BAAI/Video-XL-2")


def test_the_plan_counts_quantised_weights(command):
    def plan(*more):
        return json.loads(command("plan", *REAL, "--frames", 1024, "--device", "t4", "--json", *more).out)

    wide, int8, int4 = plan(), plan("--weights", "int8"), plan("--weights", "int4")
    assert [found["weights"] for found in (wide, int8, int4)] == ["wide", "int8", "int4"]
    assert not wide["fits"] and "--weights int8" in wide["advice"] and int8["fits"] and int4["fits"]
    assert wide["bytes"]["weights"] > 16.2e9 and 8.1e9 < int8["bytes"]["weights"] < 8.2e9
    assert 5.0e9 < int4["bytes"]["weights"] < 5.2e9 and int4["peak_bytes"] < int8["peak_bytes"]
    assert plan("--weights", "auto") == int8
    assert json.loads(command("plan", *REAL, "--frames", 64, "--device", "h200", "--weights", "auto", "--json").out)[
        "weights"
    ] == ("wide")
