"""Meshes and partition rules: one set of them for one device, a slice or a pod.

Axes: "data" splits examples and, so that no device holds the whole model, parameters (fully sharded data parallelism);
"model" splits heads and MLP channels (tensor parallelism; at most as many ways as there are key heads). Communication is
left to the compiler, which reads these placements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import RequestError

DATA, MODEL = "data", "model"
_WIDENING = ("query", "key", "value", "gate", "up")
_NARROWING = ("out", "down")


def make_mesh(
    config: ModelConfig, data: int | None = None, model: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of `data` × `model` devices; `data` None takes as many as there are.

    Raises RequestError where the devices, heads or channels cannot be split so.
    """
    devices = list(jax.devices() if devices is None else devices)
    data = len(devices) // model if data is None else data
    if data < 1 or model < 1 or data * model > len(devices):
        raise RequestError(f"a mesh of {data} × {model} needs {data * model} devices, there are {len(devices)}")
    if config.language.kv_heads % model:
        raise RequestError(f"{config.language.kv_heads} key heads cannot be split {model} ways; choose a divisor")
    kinds = (jax.sharding.AxisType.Auto,) * 2
    return Mesh(np.asarray(devices[: data * model]).reshape(data, model), (DATA, MODEL), axis_types=kinds)


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Where each array of a tree of parameters, or of an optimiser's state over them, lies."""

    def place(path, leaf):
        return NamedSharding(mesh, _fitting(mesh, _wanted(_names(path), leaf.shape), leaf.shape))

    return jax.tree_util.tree_map_with_path(place, tree)


def examples(mesh: Mesh) -> NamedSharding:
    """Where a batch lies: examples over the data axis."""
    return NamedSharding(mesh, P(DATA))


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))


def _wanted(names: tuple[str, ...], shape: tuple[int, ...]) -> P:
    """The rule, before it is seen whether an axis divides."""
    leaf, layer = names[-1] if names else "", names[-2] if len(names) > 1 else ""
    if "language" in names and layer in _WIDENING + _NARROWING:
        widens = layer in _WIDENING
        return {
            "kernel": P(None, DATA, MODEL) if widens else P(None, MODEL, DATA),
            "bias": P(None, MODEL if widens else None),
            "lora_down": P(None, DATA if widens else MODEL, None),
            "lora_up": P(None, None, MODEL if widens else DATA),
        }[leaf]
    if leaf == "embed":
        return P(MODEL, DATA)
    if leaf == "head":
        return P(DATA, MODEL)
    # Anything else: its longest axis is shared out, if it is a matrix at all.
    if len(shape) < 2 or leaf in ("bias", "scale"):
        return P()
    longest = int(np.argmax(shape))
    return P(*(DATA if axis == longest else None for axis in range(len(shape))))


def _fitting(mesh: Mesh, wanted: P, shape: tuple[int, ...]) -> P:
    """The rule without the axes that do not divide."""
    return P(
        *(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(wanted, shape, strict=False))
    )
