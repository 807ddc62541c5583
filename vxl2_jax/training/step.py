"""One step of training: what learns and what does not, the loss's gradient, the optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from pallas_kernels.attention import REFERENCE, Kernel
from vxl2_jax import parallel
from vxl2_jax.config import ModelConfig
from vxl2_jax.training import lora, optimiser
from vxl2_jax.training.collate import Batch
from vxl2_jax.training.loss import loss
from vxl2_jax.training.settings import Stage, TrainingSettings

Params = Any
Update = Callable[["TrainState", Params, Batch], tuple["TrainState", dict[str, jax.Array]]]


class TrainState(NamedTuple):
    """What a step changes. step int32: how many were made in this stage; params: those that learn; optimiser: optax's."""

    step: jax.Array
    params: Params
    optimiser: Any


def divide(params: Params, settings: TrainingSettings, stage: Stage) -> tuple[Params, Params]:
    """(parameters that learn in a stage, all others); of the language half only its low-rank updates, if it has any."""
    flat = flatten_dict(params)

    def learns(path):
        return path[0] in stage.train and (path[0] != "language" or not settings.lora or lora.is_update(path))

    parts = ({path: leaf for path, leaf in flat.items() if learns(path) == wanted} for wanted in (True, False))
    return tuple(unflatten_dict(part) for part in parts)


def join(learning: Params, frozen: Params) -> Params:
    """The whole tree again."""
    return unflatten_dict({**flatten_dict(frozen), **flatten_dict(learning)})


def attach(params: Params, settings: TrainingSettings) -> Params:
    """Parameters as a run begins: with low-rank updates of the language half, if the settings want them."""
    if settings.lora is None:
        return params
    return lora.attach(jax.random.key(settings.seed), params, settings.lora.rank, settings.lora.targets)


def prepare(
    config: ModelConfig,
    params: Params,
    settings: TrainingSettings,
    stage: Stage,
    steps: int,
    *,
    kernel: Kernel = REFERENCE,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Params, Update]:
    """(state, frozen parameters, update) at the beginning of a stage of `steps` steps.

    params: the whole tree, of `attach` or of the stage before (`join`). update(state, frozen, batch) returns the next
    state, in the old one's memory, and fp32 scalars: loss, tokens, right, grad_norm (before clipping), rate.
    """
    learning, frozen = divide(params, settings, stage)
    learning = jax.tree.map(lambda a: jnp.array(a, settings.params_dtype), learning)  # a copy: a step gives it up
    frozen = jax.tree.map(lambda a: jnp.asarray(a, settings.compute_dtype), frozen)
    state = TrainState(jnp.int32(0), learning, optimiser.build(settings, stage, steps).init(learning))
    if mesh is not None:
        state, frozen = (jax.device_put(tree, parallel.shardings(mesh, tree)) for tree in (state, frozen))
    return state, frozen, make_update(config, settings, stage, steps, kernel=kernel, mesh=mesh)


def make_update(
    config: ModelConfig,
    settings: TrainingSettings,
    stage: Stage,
    steps: int,
    *,
    kernel: Kernel = REFERENCE,
    mesh: Mesh | None = None,
) -> Update:
    """The jitted step of a stage, see `prepare`."""
    optimise, rate = optimiser.build(settings, stage, steps), optimiser.schedule(stage, steps)
    vision_learns = bool({"vision", "dts", "projector"} & set(stage.train))

    def update(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        def of(learning: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            narrow = jax.tree.map(lambda a: a.astype(settings.compute_dtype), learning)
            return loss(
                join(narrow, frozen),
                config,
                batch,
                kernel=kernel,
                remat=settings.remat,
                vision_learns=vision_learns,
                mesh=mesh,
            )

        (value, measures), grads = jax.value_and_grad(of, has_aux=True)(state.params)
        updates, moments = optimise.update(grads, state.optimiser, state.params)
        measures |= {"loss": value, "grad_norm": optax.tree.norm(grads), "rate": rate(state.step)}
        learned = optax.apply_updates(state.params, updates)
        if mesh is not None:

            def keep(tree):
                return jax.lax.with_sharding_constraint(tree, parallel.shardings(mesh, tree))

            learned, moments = keep(learned), keep(moments)
        return TrainState(state.step + 1, learned, moments), jax.tree.map(jnp.float32, measures)

    return jax.jit(update, donate_argnums=0)
