"""Device meshes and partition rules of training: the same for one device, a slice or a pod. See `tensor_parallel` for inference.

Axes: "data" splits samples and, so that no device holds the whole model, parameters (fully sharded data parallelism);
"model" splits heads and MLP channels (tensor parallelism; at most as many ways as there are key/value heads). The
compiler derives the communication from these shardings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vxl2_jax.config import ModelConfig, ShardedLanguageConfig
from vxl2_jax.errors import RequestError

DATA, MODEL = "data", ShardedLanguageConfig.axis
COLUMN_PARALLEL = ("query", "key", "value", "gate", "up")
"""Linear layers of the language model whose outputs are divided among devices."""
ROW_PARALLEL = ("out", "down")
"""Those whose inputs are: the devices' products are summed."""


def make_mesh(
    config: ModelConfig, data: int | None = None, model: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of `data` × `model` devices. data None: as many as there are.

    Raises:
      RequestError: there are too few devices, or the heads do not divide.
    """
    devices = list(jax.devices() if devices is None else devices)
    data = len(devices) // model if data is None else data
    if data < 1 or model < 1 or data * model > len(devices):
        raise RequestError(
            f"a mesh of {data} × {model} needs {data * model} devices, but there are {len(devices)}; choose a smaller mesh"
        )
    if config.language.kv_heads % model:
        raise RequestError(
            f"{config.language.kv_heads} key/value heads cannot be split {model} ways; choose a divisor for mesh.model"
        )
    kinds = (jax.sharding.AxisType.Auto,) * 2
    return Mesh(np.asarray(devices[: data * model]).reshape(data, model), (DATA, MODEL), axis_types=kinds)


def shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of each array in a tree of parameters, or in an optimiser's state over them."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))
        return NamedSharding(mesh, _drop_uneven(mesh, _spec(names, leaf.shape), leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: samples over the data axis."""
    return NamedSharding(mesh, P(DATA))


def _spec(names: tuple[str, ...], shape: tuple[int, ...]) -> P:
    """The partition rule of a parameter, whether or not its axes divide evenly."""
    leaf, layer = names[-1] if names else "", names[-2] if len(names) > 1 else ""
    if "language" in names and layer in COLUMN_PARALLEL + ROW_PARALLEL:
        by_column = layer in COLUMN_PARALLEL
        return {
            "kernel": P(None, DATA, MODEL) if by_column else P(None, MODEL, DATA),
            "bias": P(None, MODEL if by_column else None),
            "lora_down": P(None, DATA if by_column else MODEL, None),
            "lora_up": P(None, None, MODEL if by_column else DATA),
        }[leaf]
    if leaf == "embed":
        return P(MODEL, DATA)
    if leaf == "head":
        return P(DATA, MODEL)
    # Other matrices are split along their longest axis; vectors are replicated.
    if len(shape) < 2 or leaf in ("bias", "scale"):
        return P()
    longest = int(np.argmax(shape))
    return P(*(DATA if axis == longest else None for axis in range(len(shape))))


def _drop_uneven(mesh: Mesh, spec: P, shape: tuple[int, ...]) -> P:
    """The rule without the axes that do not divide evenly."""
    return P(
        *(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape, strict=False))
    )
