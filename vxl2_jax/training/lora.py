"""Low-rank updates of the language half's linear layers (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vxl2_jax.models.linear import DOWN, UP

Params = Any
TARGETS = ("query", "key", "value", "out", "gate", "up", "down")


def attach(key: jax.Array, params: Params, rank: int, targets: tuple[str, ...] = TARGETS) -> Params:
    """The same parameters with updates that do nothing yet: random ways down, zero ways up.

    Shapes: a target's kernel [L, in, out] gets fp32 factors [L, in, rank] and [L, rank, out].
    """
    layers = dict(params["language"]["layers"])
    for target, own in zip(targets, jax.random.split(key, len(targets)), strict=True):
        count, fan_in, fan_out = layers[target]["kernel"].shape
        down = fan_in**-0.5 * jax.random.normal(own, (count, fan_in, rank))
        layers[target] = {**layers[target], DOWN: down, UP: jnp.zeros((count, rank, fan_out))}
    return {**params, "language": {**params["language"], "layers": layers}}


def merge(params: Params) -> Params:
    """Parameters without updates that compute the same: each is added to its kernel, in the kernel's dtype."""

    def merged(layer: Any) -> Any:
        if not isinstance(layer, dict) or DOWN not in layer:
            return layer
        update = jnp.einsum("lir,lro->lio", layer[DOWN].astype(jnp.float32), layer[UP].astype(jnp.float32))
        kernel = (layer["kernel"].astype(jnp.float32) + update).astype(layer["kernel"].dtype)
        return {name: a for name, a in layer.items() if name not in (DOWN, UP)} | {"kernel": kernel}

    layers = {name: merged(layer) for name, layer in params["language"]["layers"].items()}
    return {**params, "language": {**params["language"], "layers": layers}}


def is_update(path: tuple[str, ...]) -> bool:
    """Whether a parameter (its names from the root on) belongs to an update."""
    return path[-1] in (DOWN, UP)
