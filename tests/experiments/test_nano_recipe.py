"""The recipe of nano with few steps: every stage trains its modules, and the model that it writes answers."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import vxl2_jax as vxl2
from experiments.nano import language, recipe
from experiments.synthetic import vocabulary
from vxl2_jax import config


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_stage_trains_its_modules(tmp_path, monkeypatch):
    size = config.nano(len(vocabulary.words()))
    size = replace(size, vision=replace(size.vision, layers=1))
    monkeypatch.setattr(recipe.config, "nano", lambda words: size)
    for name, value in (("LENGTHS", (8,)), ("EARLY", (1,)), ("LATER", (1,)), ("CHECKED", (8,)), ("CHECKS", 1)):
        monkeypatch.setattr(language, name, value)
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        folder = recipe.train(str(tmp_path / "run"), clips=2, steps=1)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["patches", "tokens", "answers"]
    assert all(line["grad_norm"] > 0 and line["learning_rate"] > 0 for line in lines)
    assert "check items" in lines[0] and "32 s exists" in lines[2]

    model = vxl2.load(folder)
    for module, before in recipe.init(size).items():
        # Adam's first step is about the learning rate, 3e-4 or more; float16 rounds by less than rtol.
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(model.params[module]), strict=True)
        moved = [not np.allclose(new, old, rtol=1e-3, atol=1e-4) for old, new in pairs]
        assert sum(moved) > len(moved) / 2, module
    answers = model.ask(model.watch("vxl2_jax/assets/demo.mp4"), ["Is there a dog?"], max_new_tokens=3)
    assert isinstance(answers[0].text, str)
