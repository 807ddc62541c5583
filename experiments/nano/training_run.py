"""The run of stage 3: what is drawn at which step, how fast to learn, what to check, what to save."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nano import (
    questions,
    training_compose,
    training_dts,
    training_export,
    training_frames,
    training_language,
    training_loop,
    training_mixed,
    training_rows,
    training_start,
)
from vxl2_jax.config import ModelConfig
from vxl2_jax.layout import Rule

Params = Any
LENGTHS = (6, 9, 12, 16, 24, 32)  # groups; few, since each is compiled
CHECKED = (9, 12, 16)
QUESTIONS = 16  # per video
CHECK_EVERY = 200


def videos(groups: int) -> int:
    """Videos in a batch: fewer where they are long."""
    return 8 if groups <= 16 else 4


def draw_rule(rng: np.random.Generator, groups: int) -> Rule:
    """Dense six times in ten, else chunked with small blocks, so that something is hidden."""
    if rng.random() < 0.6:
        return Rule(4, None)
    return Rule(int(rng.integers(1, 5)), int(rng.integers(0, 4)))


def draw(bank: training_compose.Bank, step: int, real: float, bilevel: float) -> tuple[dict, np.ndarray, dict | None]:
    """The batch of a step: videos and questions, who sees whom, and the mixed cache if there is one."""
    rng = np.random.default_rng((0, 5, step))
    early = max(0.0, 1 - step / 400)  # short videos first, long ones from the start
    shares = np.array([0.1, 0.2, 0.2, 0.2, 0.15, 0.15]) * (1 - early) + np.array([0.5, 0.3, 0.1, 0.1, 0, 0]) * early
    mixing = rng.random() < bilevel
    groups = int(rng.choice(LENGTHS[2:5])) if mixing else int(rng.choice(LENGTHS, p=shares))
    batch = vars(training_compose.batch(bank, rng, videos(groups), groups, QUESTIONS, real=real))
    noise = rng.uniform(0, 0.04) * rng.standard_normal(batch["visual"].shape, np.float32)
    batch = {**batch, "visual": (batch["visual"] + noise).astype(np.float16)}
    mixed = training_mixed.draw(rng, batch, groups) if mixing else None
    return batch, training_language.video_mask(groups, draw_rule(rng, groups)), mixed


def load_bank(folder: Path, split: int) -> training_compose.Bank:
    """Visual tokens of stage 2; while there are none, what they should be, with noise."""
    frames, made = training_frames.load(folder / f"frames_{split}"), folder / f"tokens_{split}.npy"
    if made.exists():
        return training_compose.make_bank(split, frames, np.load(made))
    groups = min(frames.done, 16000)
    labels = training_dts.labels(np.asarray(frames.names[:groups]), np.asarray(frames.boxes[:groups]))
    noise = 0.03 * np.random.default_rng(split).standard_normal((groups, 9, training_rows.WIDTH), np.float32)
    return training_compose.make_bank(split, frames, (labels @ training_rows.visual_rows() + noise).astype(np.float16))


def check(compute: Any, params: Params, bank: training_compose.Bank) -> dict[str, float]:
    """Accuracy by type on clips as rendered of 9, 12 and 16 groups, and the mean on composed ones of 32.

    All start at second 0 and are seen densely. A "when" one group off counts as wrong here.
    """
    found = {}
    for groups in (*CHECKED, LENGTHS[-1]):
        rng = np.random.default_rng((1, groups))
        batch = vars(training_compose.batch(bank, rng, videos(groups), groups, 2 * QUESTIONS, 1.0, 0.0))
        measures = compute(params, batch, training_language.video_mask(groups, Rule(4, None)), 0.0)[1]
        found[groups] = {kind: float(measures[kind]) for kind in questions.TYPES}
    right = {kind: round(float(np.mean([found[g][kind] for g in CHECKED])), 3) for kind in questions.TYPES}
    return {**right, "32 groups": round(float(np.mean(list(found[LENGTHS[-1]].values()))), 3)}


def language(
    folder: Path, config: ModelConfig, minutes: float = 60.0, rate: float = 1e-3, real: float = 0.2,
    bilevel: float = 0.0, export: Path | None = None,
) -> None:
    """Train for `minutes`; the rate falls over the last third of them. Goes on from a saved state."""
    banks = [load_bank(folder, split) for split in (0, 1)]
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.9, 0.98))
    params = training_start.init(jax.random.key(2), config.language)
    state = {"params": params, "state": adam.init(params), "step": 0}
    state = training_loop.load(folder / "language.pickle") or state
    params, moments = jax.tree.map(jnp.asarray, (state["params"], state["state"]))
    compute = lambda p, *rest: training_language.loss(p, config.language, *rest)
    checker = jax.jit(compute)

    @jax.jit
    def advance(params: Params, moments: Any, speed: jax.Array, *drawn: Any) -> tuple[Params, Any, dict]:
        (value, measures), grads = jax.value_and_grad(compute, has_aux=True)(params, *drawn)
        updates, moments = adam.update(grads, moments, params)
        decayed = jax.tree.map(lambda u, p: u + 0.01 * p * (p.ndim >= 2), updates, params)
        params = jax.tree.map(lambda p, u: p - speed * u, params, decayed)
        return params, moments, {"loss": value, **measures}

    log, begun = training_loop.Log(folder / "log.jsonl", "language"), time.time()
    first, past = int(state["step"]), 0.0
    with ThreadPoolExecutor(1) as pool:
        i, waiting = first, pool.submit(draw, banks[0], first, real, bilevel)
        while past < 1:
            batch, mask, mixed = waiting.result()
            waiting = pool.submit(draw, banks[0], i + 1, real, bilevel)
            past = (time.time() - begun) / 60 / minutes
            speed = rate * min(1, (i + 1) / 60, (i - first + 1) / 10) * min(1, max(0.03, 3 * (1 - past)))
            help = max(0.1, 0.5 * (1 - i / 3000))
            params, moments, measures = advance(params, moments, speed, batch, mask, help, mixed)
            log.add(measures)
            i += 1
            if i % CHECK_EVERY == 0 or past >= 1:
                right = check(checker, params, banks[1])
                log.write(i, rate=speed, check=right)
                training_loop.save(folder / "language.pickle", params=params, state=moments, step=i)
                if (folder / "tokens_0.npy").exists() and export is not None:
                    training_export.export(folder, config, export, i, right)
            elif i % 25 == 0 and i < 400:
                log.write(i)
