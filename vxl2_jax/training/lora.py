"""Low-rank updates of the language model's linear layers (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from vxl2_jax.models.linear import DOWN, UP

Params = Any
TARGETS = ("query", "key", "value", "out", "gate", "up", "down")


def attach(key: PRNGKeyArray, params: Params, rank: int, targets: tuple[str, ...] = TARGETS) -> Params:
    """The parameters with low-rank updates that are zero at first: random down factors, zero up factors.

    A target's kernel [L, in, out] gets float32 factors [L, in, rank] and [L, rank, out].
    """
    layers = dict(params["language"]["layers"])
    for target, target_key in zip(targets, jax.random.split(key, len(targets)), strict=True):
        count, fan_in, fan_out = layers[target]["kernel"].shape
        down = fan_in**-0.5 * jax.random.normal(target_key, (count, fan_in, rank))
        layers[target] = {**layers[target], DOWN: down, UP: jnp.zeros((count, rank, fan_out))}
    return {**params, "language": {**params["language"], "layers": layers}}


def merge(params: Params) -> Params:
    """Equivalent parameters without low-rank updates: each is added to its kernel, in the kernel's dtype."""

    def merge_layer(layer: Any) -> Any:
        if not isinstance(layer, dict) or DOWN not in layer:
            return layer
        update = jnp.einsum("lir,lro->lio", layer[DOWN].astype(jnp.float32), layer[UP].astype(jnp.float32))
        kernel = (layer["kernel"].astype(jnp.float32) + update).astype(layer["kernel"].dtype)
        return {name: a for name, a in layer.items() if name not in (DOWN, UP)} | {"kernel": kernel}

    layers = {name: merge_layer(layer) for name, layer in params["language"]["layers"].items()}
    return {**params, "language": {**params["language"], "layers": layers}}


def is_update(path: tuple[str, ...]) -> bool:
    """Whether a parameter, given by its path of names, belongs to a low-rank update."""
    return path[-1] in (DOWN, UP)
