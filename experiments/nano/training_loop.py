"""What every stage shares: an optimiser with warm-up and decay, saved states, a log of numbers."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Params = Any


def optimiser(rate: float, steps: int, decay: float = 0.02, warm: int = 100) -> optax.GradientTransformation:
    """AdamW with a cosine schedule that ends at a fiftieth of `rate`; only matrices are decayed."""
    schedule = optax.warmup_cosine_decay_schedule(rate / 20, rate, warm, steps, rate / 50)

    def matrices(params):
        return jax.tree.map(lambda a: a.ndim >= 2, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=decay, mask=matrices),
    )


def update(
    loss: Callable[..., tuple[jax.Array, dict]], optimise: optax.GradientTransformation
) -> Callable[..., tuple[Params, Any, dict]]:
    """A jitted step: (params, optimiser state, *batch) → (params, optimiser state, measures)."""

    @jax.jit
    def step(params: Params, state: Any, *batch: Any) -> tuple[Params, Any, dict]:
        (value, measures), grads = jax.value_and_grad(loss, has_aux=True)(params, *batch)
        updates, state = optimise.update(grads, state, params)
        return optax.apply_updates(params, updates), state, {"loss": value, **measures}

    return step


def save(file: Path, **parts: Any) -> None:
    """Write a state so that a kill leaves the old one or the new one, never half of one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".new")
    temporary.write_bytes(pickle.dumps(jax.tree.map(np.asarray, parts)))
    os.replace(temporary, file)


def load(file: Path) -> dict[str, Any] | None:
    """A saved state, or None where there is none. Only for files this training wrote itself."""
    return pickle.loads(file.read_bytes()) if file.exists() else None


class Log:
    """Running means of measures, written as JSON lines with the minutes since the start."""

    def __init__(self, file: Path, stage: str):
        self.file, self.stage, self.begun, self.sums, self.count = file, stage, time.time(), {}, 0

    def add(self, measures: dict) -> None:
        self.count += 1
        for key, value in measures.items():
            self.sums[key] = self.sums.get(key, 0.0) + jnp.asarray(value)

    def write(self, step: int, **more: Any) -> None:
        means = {key: round(float(value) / max(self.count, 1), 4) for key, value in self.sums.items()}
        minutes = round((time.time() - self.begun) / 60, 2)
        line = json.dumps({"stage": self.stage, "step": step, "minutes": minutes, **means, **more})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as out:
            out.write(line + "\n")
        print(line, flush=True)
        self.sums, self.count = {}, 0
