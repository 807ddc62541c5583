"""Low-rank updates over quantised weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vxl2_jax as vxl2
from vxl2_jax import hardware
from vxl2_jax.checkpoints import fetch, native
from vxl2_jax.errors import RequestError
from vxl2_jax.hardware import CompilerTraits
from vxl2_jax.models import quantised
from vxl2_jax.training import finetune, settings
from vxl2_jax.training.loop import TrainingLog

LORA = "[lora]\nrank = 4\ntargets = ['query', 'down']"
STAGE = '[[stages]]\nname = "language"\ntrain = ["language"]\nlearning_rate = 3e-2\nsteps = 8'


@pytest.mark.parametrize("weights", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
def test_updates_are_trained_over_a_quantised_model_and_exported_with_it(config, tiny_dir, monkeypatch, weights):
    # As on a GPU, where `load` keeps the layers apart.
    monkeypatch.setattr(hardware, "compiler_for", lambda device: CompilerTraits(separate_layers=True))
    lines = []
    out = finetune.train(
        settings.read(config(f'weights = "{weights}"', STAGE, LORA)), TrainingLog(metrics=lines.append)
    )
    monkeypatch.undo()
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    base = quantised.widen(vxl2.load(tiny_dir, weights=weights).params, jnp.float32)
    trained = vxl2.load(out)
    assert trained.weights == "wide"
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), trained.params, base)
    changed = {
        (name, part) for name, leaf in same["language"]["layers"].items() for part, equal in leaf.items() if not equal
    }
    assert changed == {("query", "kernel"), ("down", "kernel")}
    assert all(jax.tree.leaves([same[part] for part in ("vision", "dts", "projector")]))


@pytest.mark.parametrize("rest", ["", LORA])
def test_quantised_weights_themselves_are_not_trained(config, rest):
    stage = STAGE if not rest else STAGE.replace('["language"]', '["language", "projector"]')
    with pytest.raises(RequestError, match=r'toml: weights = "int8"'):
        settings.read(config('weights = "int8"', stage, rest))


def test_a_quantised_checkpoint_says_how_it_can_be_trained(config, tiny_dir, tmp_path):
    stored = tmp_path / "stored"
    read, params = fetch.read(tiny_dir, "float32", None, "int8")
    native.save(stored, read, params, vxl2.load(tiny_dir).tokenizer.json)
    text = config("", STAGE, LORA).read_text().replace(str(tiny_dir), str(stored))
    (tmp_path / "other.toml").write_text(text)
    with pytest.raises(RequestError, match='set weights = "int8"'):
        finetune.train(settings.read(tmp_path / "other.toml"))
