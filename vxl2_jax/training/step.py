"""A training step: trained and frozen parameters, the gradient of the loss, the optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from vxl2_jax import parallel
from vxl2_jax.models.quantised import is_quantised
from vxl2_jax.training import lora, optimiser
from vxl2_jax.training.settings import RunSettings, Stage

Params = Any


class TrainState(NamedTuple):
    """What a step changes. step int32: steps done in this stage; params: the trained ones; optimiser: optax's state."""

    step: jax.Array
    params: Params
    optimiser: Any


Loss = Callable[[Params, Any], tuple[jax.Array, dict[str, jax.Array]]]
"""(all parameters, batch) → (scalar to minimise, scalar metrics: "tokens", "accuracy" and any others)."""
TrainStep = Callable[[TrainState, Params, Any], tuple[TrainState, dict[str, jax.Array]]]


def partition(params: Params, settings: RunSettings, stage: Stage) -> tuple[Params, Params]:
    """(trained parameters, frozen parameters) of a stage. With LoRA only the language model's low-rank updates train."""
    flat = flatten_dict(params)

    def is_trained(path: tuple[str, ...]) -> bool:
        return path[0] in stage.train and (path[0] != "language" or not settings.lora or lora.is_update(path))

    trained = {path: leaf for path, leaf in flat.items() if is_trained(path)}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return unflatten_dict(trained), unflatten_dict(frozen)


def combine(trained: Params, frozen: Params) -> Params:
    """The whole tree; where both have a parameter, that of `trained`."""
    return unflatten_dict({**flatten_dict(frozen), **flatten_dict(trained)})


def attach_lora(params: Params, settings: RunSettings) -> Params:
    """The parameters at the start of a run: with low-rank updates of the language model if the settings have lora."""
    if settings.lora is None:
        return params
    return lora.attach(jax.random.key(settings.seed), params, settings.lora.rank, settings.lora.targets)


def init_stage(
    params: Params, settings: RunSettings, stage: Stage, steps: int, loss: Loss, mesh: Mesh | None = None
) -> tuple[TrainState, Params, TrainStep]:
    """(state, frozen parameters, train step) at the start of a stage of `steps` steps.

    Args:
      params: the whole tree, from `attach_lora` or the stage before (`combine`).

    Returns:
      The third, called with (state, frozen, batch), returns the next state, in the buffers of the old one, and float32
      scalars: the loss's metrics, loss, grad_norm (before clipping), learning_rate.
    """
    trained, frozen = partition(params, settings, stage)
    trained = jax.tree.map(lambda a: jnp.array(a, settings.params_dtype), trained)  # a copy: a step donates it
    frozen = jax.tree.map(
        lambda a: a if is_quantised(a) else jnp.asarray(a, settings.compute_dtype), frozen, is_leaf=is_quantised
    )
    state = TrainState(jnp.int32(0), trained, optimiser.build(settings, stage, steps).init(trained))
    if mesh is not None:
        state, frozen = (jax.device_put(tree, parallel.shardings(mesh, tree)) for tree in (state, frozen))
    return state, frozen, make_train_step(settings, stage, steps, loss, mesh)


def make_train_step(settings: RunSettings, stage: Stage, steps: int, loss: Loss, mesh: Mesh | None = None) -> TrainStep:
    """The jitted step of a stage, see `init_stage`."""
    optimizer, learning_rate = optimiser.build(settings, stage, steps), optimiser.schedule(stage, steps)

    def train_step(state: TrainState, frozen: Params, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        def loss_of(trained: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            trained = jax.tree.map(lambda a: a.astype(settings.compute_dtype), trained)
            return loss(combine(trained, frozen), batch)

        (value, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, optimiser_state = optimizer.update(grads, state.optimiser, state.params)
        metrics |= {"loss": value, "grad_norm": optax.tree.norm(grads), "learning_rate": learning_rate(state.step)}
        params = optax.apply_updates(state.params, updates)
        if mesh is not None:
            params, optimiser_state = (
                jax.lax.with_sharding_constraint(tree, parallel.shardings(mesh, tree))
                for tree in (params, optimiser_state)
            )
        return TrainState(state.step + 1, params, optimiser_state), jax.tree.map(jnp.float32, metrics)

    return jax.jit(train_step, donate_argnums=0)
