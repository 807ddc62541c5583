"""The whole model as a Hugging Face directory, replaced in one move."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import jax
import numpy as np

from experiments.nano import training_loop
from experiments.synthetic import vocabulary
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.config import ModelConfig


def gather(folder: Path) -> dict:
    """Parameters of all stages together, fp32."""

    def read(stage):
        return training_loop.load(folder / f"{stage}.pickle")["params"]

    halves = read("dts")
    return {
        "vision": read("tower")["vision"],
        "dts": halves["dts"],
        "projector": halves["projector"],
        "language": read("language"),
    }


def export(folder: Path, config: ModelConfig, target: Path, step: int, measured: dict) -> None:
    """Write `target` anew, and a line with what was measured to exports.txt."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float16), gather(folder))
    fresh, old = target.with_name(target.name + ".new"), target.with_name(target.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    huggingface.save(fresh, config, params, np.float16)
    vocabulary.tokenizer().save(str(fresh / "tokenizer.json"), pretty=False)
    (fresh / "model.safetensors").chmod(0o644)
    for other in target.glob("*"):  # what others keep beside the model stays there
        if not (fresh / other.name).exists():
            shutil.copy2(other, fresh / other.name)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    with (folder / "exports.txt").open("a") as out:
        out.write(f"{time.strftime('%H:%M:%S')} step {step} {measured}\n")
