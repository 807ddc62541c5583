"""Random weights of real sizes, made on the device in the dtype they are used in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vxl2_jax.config import ModelConfig
from vxl2_jax.models import video_xl_2


def draw(config: ModelConfig, parts: Sequence[str], dtype: str, seed: int) -> dict[str, Any]:
    """The named parts of a model's parameters: "vision", "dts", "projector", "language". No float32 copy is made."""
    shapes = jax.eval_shape(lambda key: video_xl_2.init(key, config), jax.random.key(0))
    leaves, structure = jax.tree_util.tree_flatten_with_path({part: shapes[part] for part in parts})
    names, sizes = zip(*((path[-1].key, leaf.shape) for path, leaf in leaves), strict=True)

    @jax.jit
    def draw_all(key: jax.Array) -> list[jax.Array]:
        keys = jax.random.split(key, len(names))
        return [_leaf(name, size, k, dtype) for name, size, k in zip(names, sizes, keys, strict=True)]

    return jax.tree.unflatten(structure, draw_all(jax.random.key(seed)))


def _leaf(name: str, shape: tuple[int, ...], key: jax.Array, dtype: str) -> jax.Array:
    """Small random numbers; scales are near 1, so that activations stay as they are in a trained model."""
    if len(shape) > 2:  # stacked layers, or convolution kernels: one after the other, or temporaries would be large
        numbers = jax.lax.map(lambda k: jax.random.normal(k, shape[1:], dtype), jax.random.split(key, shape[0]))
    else:
        numbers = jax.random.normal(key, shape, dtype)
    return 0.02 * numbers + jnp.asarray(name == "scale", dtype)
