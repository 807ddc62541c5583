"""AdamW with clipping, warm-up and cosine, and learning rates by module (optax)."""

from __future__ import annotations

from typing import Any

import jax
import optax

from vxl2_jax.models.linear import UP
from vxl2_jax.training.settings import Stage, TrainingSettings

_DECAYED = ("kernel",)
"""Names of the parameters that decay: matrices, but neither embeddings nor norms, biases and low-rank updates."""


def schedule(stage: Stage, steps: int) -> optax.Schedule:
    """The learning rate of a stage of `steps` steps, see `settings.Stage`."""
    warmup = min(stage.warmup, max(steps - 1, 0))
    begin = 0.0 if warmup else stage.rate
    return optax.warmup_cosine_decay_schedule(begin, stage.rate, warmup, steps, stage.rate * stage.end)


def build(settings: TrainingSettings, stage: Stage, steps: int) -> optax.GradientTransformation:
    """The optimiser of a stage for a tree of the parameters that learn there, {module: …}.

    Modules with a rate of their own keep the stage's schedule, scaled. The factors up of low-rank updates learn
    alpha / rank times as fast, which is what scaling the update by that amounts to with Adam.
    """
    faster = settings.lora.alpha / settings.lora.rank if settings.lora else 1.0

    def decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _DECAYED, params)

    def factor(path: tuple, update: jax.Array) -> jax.Array:
        own = stage.rates.get(path[0].key, stage.rate) / stage.rate
        return update * (own * (faster if path[-1].key == UP else 1.0))

    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.scale_by_adam(b1=0.9, b2=0.98),
        optax.add_decayed_weights(settings.weight_decay, mask=decayed),
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(factor, updates)),
        optax.scale_by_learning_rate(schedule(stage, steps)),
    )
