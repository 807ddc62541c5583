"""AdamW with gradient clipping, warm-up, cosine decay and learning rates per module (optax)."""

from __future__ import annotations

from typing import Any

import jax
import optax

from vxl2_jax.models.linear import UP
from vxl2_jax.training.settings import RunSettings, Stage

_DECAYED = ("kernel",)
"""Names of parameters with weight decay: weight matrices, not embeddings, norms, biases or low-rank updates."""


def schedule(stage: Stage, steps: int) -> optax.Schedule:
    """The learning rate of a stage of `steps` steps, see `settings.Stage`."""
    warmup, peak = min(stage.warmup, max(steps - 1, 0)), stage.learning_rate
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps, peak * stage.final_lr_scale)


def build(settings: RunSettings, stage: Stage, steps: int) -> optax.GradientTransformation:
    """The optimiser of a stage, for a tree {module: …} of its trained parameters.

    Modules with a learning rate of their own follow the stage's schedule, scaled. The `lora_up` factors have a learning
    rate alpha / rank times higher: with Adam this is equivalent to scaling the low-rank update by alpha / rank.
    """
    lora_scale = settings.lora.alpha / settings.lora.rank if settings.lora else 1.0

    def decay_mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _DECAYED, params)

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        module_scale = stage.learning_rates.get(path[0].key, stage.learning_rate) / stage.learning_rate
        return update * (module_scale * (lora_scale if path[-1].key == UP else 1.0))

    return optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.scale_by_adam(b1=0.9, b2=0.98),
        optax.add_decayed_weights(settings.weight_decay, mask=decay_mask),
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)),
        optax.scale_by_learning_rate(schedule(stage, steps)),
    )
