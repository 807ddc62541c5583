"""The recipe of nano with few steps: every stage trains its modules, and the model that it writes answers."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import vxl2_jax as vxl2
from experiments.nano import initial_heads, language, recipe
from experiments.synthetic import vocabulary
from vxl2_jax import config
from vxl2_jax.models import video_xl_2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_stage_trains_its_modules(tmp_path, monkeypatch):
    size = config.nano(len(vocabulary.words()))
    size = replace(size, vision=replace(size.vision, layers=1))
    monkeypatch.setattr(recipe.config, "nano", lambda words: size)
    for name, value in (("LENGTHS", (8,)), ("EARLY", (1,)), ("LATER", (1,)), ("CHECKED", (8,))):
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

    model, key = vxl2.load(folder), jax.random.key(0)
    initial = {**video_xl_2.init(key, size), "language": initial_heads.init(key, size.language)}
    for module, before in initial.items():
        moved = jax.tree.map(
            lambda a, b: not np.allclose(a, b, atol=1e-3),
            jax.tree.leaves(before),
            jax.tree.leaves(model.params[module]),
        )
        assert sum(moved) > len(moved) / 4, module
    answers = model.ask(model.watch("vxl2_jax/assets/demo.mp4"), ["Is there a dog?"], max_new_tokens=3)
    assert isinstance(answers[0].text, str)
