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

from experiments.nano import (
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
from experiments.synthetic import questions
from vxl2_jax.config import ModelConfig
from vxl2_jax.layout import PrefillRule

Params = Any
LENGTHS = (8, 12, 16, 32, 64, 128)  # groups; few, since each is compiled
EARLY = (0.5, 0.3, 0.2, 0, 0, 0)  # shares of the lengths at the first step
LATER = (0.1, 0.15, 0.25, 0.22, 0.22, 0.06)  # and from step GROWN on
GROWN = 500
MIXED, MIXED_VIDEOS = (16, 32), 2  # lengths and videos of steps with mixed caches
QUESTIONS = 14  # per video
TYPES = (*questions.TYPES, "order", "count", "first", "between")  # in turn: what is learned last is asked more often
CHECKED, CHECKS = (12, 32, 64), 6  # lengths of the videos that are checked, and batches of each
CHECK_EVERY, LOG_EVERY = 200, 50


def videos(groups: int) -> int:
    """Videos in a batch: fewer where they are long."""
    return max(1, 80 // groups)


def draw_rule(rng: np.random.Generator, groups: int) -> PrefillRule:
    """Dense, the usual rule, or another one that hides more; long videos are seldom seen whole."""
    kind = rng.random()
    if kind < (0.45 if groups <= 16 else 0.2):
        return PrefillRule(4, None)
    if kind < 0.75:
        return PrefillRule(4, 3)
    return PrefillRule(int(rng.integers(2, 5)), int(rng.integers(2, 4)))


def draw(bank: training_compose.Bank, step: int, real: float, bilevel: float) -> tuple[dict, np.ndarray, dict | None]:
    """The batch of a step: videos and questions, who sees whom, and the mixed caches if there are any."""
    rng = np.random.default_rng((0, 5, step))
    early = max(0.0, 1 - step / GROWN)  # short videos first, long ones from the start
    shares = np.array(LATER) * (1 - early) + np.array(EARLY) * early
    mixing = rng.random() < bilevel * (1 - early)
    groups = int(rng.choice(MIXED)) if mixing else int(rng.choice(LENGTHS, p=shares))
    size = MIXED_VIDEOS if mixing else videos(groups)
    made, asked = training_compose.batch(bank, rng, size, groups, QUESTIONS, real=real, packed=not mixing, types=TYPES)
    batch = vars(made)
    noise = rng.uniform(0, 0.04) * rng.standard_normal(batch["visual"].shape, np.float32)
    batch = {**batch, "visual": (batch["visual"] + noise).astype(np.float16)}
    mixed = training_mixed.draw(rng, asked, groups) if mixing else None
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


def check(right_by_type: Any, params: Params, bank: training_compose.Bank) -> dict[str, dict[str, float]]:
    """Share of questions right, by length (in groups) and type where any was asked, on videos of the checking bank that
    start at second 0; up to 16 groups seen whole and as rendered, longer ones composed, by the usual rule.

    A "when" one group off counts as wrong here, and an "order" is given its true names so far.
    """
    found = {}
    for groups in CHECKED:
        parts = []
        for i in range(CHECKS):
            rng = np.random.default_rng((1, groups, i))
            made, _ = training_compose.batch(bank, rng, videos(groups), groups, QUESTIONS, real=1.0, offsets=0.0)
            mask = training_language.video_mask(groups, PrefillRule(4, None if groups <= 16 else 3))
            parts.append(right_by_type(params, vars(made), mask))
        totals = {kind: [sum(float(part[kind][j]) for part in parts) for j in (0, 1)] for kind in questions.TYPES}
        found[str(groups)] = {kind: round(right / asked, 3) for kind, (right, asked) in totals.items() if asked}
    return found


def language(
    folder: Path,
    config: ModelConfig,
    minutes: float = 60.0,
    rate: float = 3e-4,
    real: float = 0.2,
    bilevel: float = 0.15,
    export: Path | None = None,
    state: str = "language",
) -> None:
    """Train for `minutes`; the rate falls over the last third of them. Goes on from a saved state."""
    banks = [load_bank(folder, split) for split in (0, 1)]
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.9, 0.98))
    params = training_start.init(jax.random.key(2), config.language)
    saved = training_loop.load(folder / f"{state}.pickle") or {"params": params, "state": adam.init(params), "step": 0}
    params, moments = jax.tree.map(jnp.asarray, (saved["params"], saved["state"]))

    def compute(p, *rest):
        return training_language.loss(p, config.language, *rest)

    checker = jax.jit(lambda p, *rest: training_language.right_by_type(p, config.language, *rest))

    @jax.jit
    def advance(params: Params, moments: Any, speed: jax.Array, *drawn: Any) -> tuple[Params, Any, dict]:
        (value, measures), grads = jax.value_and_grad(compute, has_aux=True)(params, *drawn)
        updates, moments = adam.update(grads, moments, params)
        decayed = jax.tree.map(lambda u, p: u + 0.01 * p * (p.ndim >= 2), updates, params)
        params = jax.tree.map(lambda p, u: p - speed * u, params, decayed)
        return params, moments, {"loss": value, **measures}

    log, begun = training_loop.Log(folder / "log.jsonl", state), time.time()
    first, past = int(saved["step"]), 0.0
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
                training_loop.save(folder / f"{state}.pickle", params=params, state=moments, step=i)
                right = check(checker, params, banks[1])
                log.write(i, rate=round(speed, 6), check=right)
                if (folder / "tokens_0.npy").exists() and export is not None:
                    training_export.export(folder, config, export, i, right)
            elif i % LOG_EVERY == 0:
                log.write(i)
