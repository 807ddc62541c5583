"""Reading and writing the original's Hugging Face directories: config.json and safetensors files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from safetensors import SafetensorError
from safetensors.flax import save_file

from vxl2_jax import files
from vxl2_jax.checkpoints.config_files import read_config
from vxl2_jax.checkpoints.key_mapping import IGNORED, KeyMapping, key_mappings, original_shapes
from vxl2_jax.checkpoints.shards import Shards
from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import CheckpointError, first_line
from vxl2_jax.models import quantised, video_xl_2
from vxl2_jax.models.quantised import QuantisedWeight

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def check_tensors(config: ModelConfig, shards: Shards) -> None:
    """Raise CheckpointError if keys, shapes or dtypes are not those of `config`, naming some of them."""
    # Before the layers' keys are listed: their number is only what config.json says.
    layers = len({match[1] for key in shards if (match := _LAYER.match(key))})
    if layers != config.language.layers:
        raise CheckpointError(
            f"the checkpoint does not fit its config.json: num_hidden_layers is {config.language.layers}, but the weights "
            f"have {layers} layers; download it again"
        )
    expected = original_shapes(config, abstract_params(config))
    present = shards.keys()
    common = sorted(expected.keys() & present)
    problems = {
        "missing": sorted(expected.keys() - present),
        "unexpected": sorted(
            key
            for key in present - expected.keys()
            if not any(part in key for part in IGNORED) and not (config.language.tied and key == "lm_head.weight")
        ),
        "mis-shaped": [
            f"{key} {shards.shape(key)} instead of {expected[key]}"
            for key in common
            if shards.shape(key) != expected[key]
        ],
        "not in floating point": [f"{key} {dtype}" for key in common if (dtype := shards.unsupported_dtype(key))],
    }
    parts = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in problems.items()
        if keys
    ]
    if parts:
        raise CheckpointError(f"the checkpoint does not fit its config.json: {'; '.join(parts)}; download it again")


def abstract_params(config: ModelConfig, dtype: Any = "float32", weights: str = quantised.WIDE) -> Any:
    """The parameter tree as ShapeDtypeStructs; allocates nothing."""
    wide = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), _traced_init(config))
    if weights == quantised.WIDE:
        return wide
    return jax.eval_shape(partial(quantised.quantise_params, setting=weights), wide)


@cache
def _traced_init(config: ModelConfig) -> Any:
    """The shapes of the parameters. Tracing takes half a second, and loading asks several times."""
    return jax.eval_shape(partial(video_xl_2.init, config=config), jax.ShapeDtypeStruct((2,), jnp.uint32))


def load(
    directory: str | Path,
    dtype: Any = "bfloat16",
    progress: Callable[[int, int], None] | None = None,
    weights: str = quantised.WIDE,
) -> tuple[ModelConfig, Any]:
    """Load a checkpoint onto the default device.

    Tensors are read one by one, so there is never a second copy of the model in memory. What is quantised is read in
    parts of about 16 MB in float32, and is never wide as a whole.

    Args:
      directory: with config.json and safetensors files.
      dtype: all parameters are cast to it that are not quantised.
      weights: one of `models.quantised.SETTINGS`.
      progress: called with (leaves done, all leaves) after each leaf.

    Returns:
      (config, params).

    Raises:
      CheckpointError: the checkpoint is missing, damaged or of another model.
    """
    directory = Path(directory)
    shards = Shards(directory)
    config = read_config(directory, shards)
    check_tensors(config, shards)
    mappings, abstract = key_mappings(config), abstract_params(config, dtype, weights)

    def build(mapping: KeyMapping) -> Any:
        scheme = quantised.scheme_of(mapping.path, weights)
        if scheme is None:
            return _build_leaf(mapping, shards.get, jnp.dtype(dtype))
        return _build_quantised(mapping, shards, mapping.leaf(abstract), scheme)

    return config, _build_tree(mappings, build, progress)


def build_params(mappings: list[KeyMapping], get: Callable[[str], ArrayLike], dtype: Any) -> dict:
    """A parameter tree from the original's tensors, which `get` returns by key."""
    return _build_tree(mappings, lambda mapping: _build_leaf(mapping, get, jnp.dtype(dtype)))


def _build_tree(
    mappings: list[KeyMapping],
    build: Callable[[KeyMapping], Any],
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    params: dict = {}
    for done, mapping in enumerate(mappings):
        parent = params
        for part in mapping.path[:-1]:
            parent = parent.setdefault(part, {})
        parent[mapping.path[-1]] = build(mapping)
        if progress:
            progress(done + 1, len(mappings))
    return params


_SMALL = 2**26
"""Bytes of a leaf that is assembled on the host. On the device each shape is a program of its own, which a small leaf is
not worth; a large one is never on the host as a whole."""


def _build_leaf(mapping: KeyMapping, get: Callable[[str], ArrayLike], dtype: Any) -> jax.Array:
    keys = mapping.original_keys()
    tensors = map(get, keys)
    first = next(tensors)
    build = _on_host if np.size(first) * len(keys) * dtype.itemsize <= _SMALL else _on_device
    leaf, finite = build(chain([first], tensors), mapping, dtype)
    _check_finite(zip(keys, finite, strict=True), dtype.name)
    return leaf


def _on_host(tensors: Iterable[ArrayLike], mapping: KeyMapping, dtype: Any) -> tuple[jax.Array, list[ArrayLike]]:
    """(the leaf, whether all of each tensor is finite)."""
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused
        layers = [np.asarray(mapping.transform.to_ours(np.asarray(tensor))).astype(dtype) for tensor in tensors]
    leaf = layers[0] if mapping.layers is None else np.stack(layers)
    return jnp.array(leaf), [np.isfinite(layer).all() for layer in layers]


def _on_device(tensors: Iterable[ArrayLike], mapping: KeyMapping, dtype: Any) -> tuple[jax.Array, list[ArrayLike]]:
    """The same. Layers are written into a stack that is allocated once: stacking at the end would hold all of them twice."""
    leaf, finite = None, []
    for layer, tensor in enumerate(tensors):
        ours = mapping.transform.to_ours(jnp.asarray(tensor))
        if mapping.layers is None:
            leaf, is_finite = _cast(ours, dtype)
        else:
            leaf = jnp.zeros((mapping.layers, *ours.shape), dtype) if leaf is None else leaf
            leaf, is_finite = _write_layer(leaf, ours, layer)
        finite.append(is_finite)
        del ours
    assert leaf is not None
    return leaf, finite


def _check_finite(found: Iterable[tuple[str, ArrayLike]], dtype: str) -> None:
    for key, finite in found:
        if not finite:
            files.WEIGHTS.fail(f"tensor {key}", f"has NaN or infinite values as {dtype}")


_PART = 2**20
"""Numbers of a tensor that are wide at the same time while it is quantised. With four times as many, the C library kept a quarter
of the weights' bytes in freed pieces after loading."""


def _build_quantised(
    mapping: KeyMapping, shards: Shards, abstract: QuantisedWeight, scheme: quantised.Scheme
) -> QuantisedWeight:
    """Quantise the layers of a leaf, a few output channels (the original's rows) at a time."""
    leaf = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), abstract)
    found = []
    for layer, key in enumerate(mapping.original_keys()):
        rows, *others = shards.shape(key)
        step = max(_PART // math.prod(others), 1)
        for begin in range(0, rows, step):
            part = mapping.transform.to_ours(shards.rows(key, begin, min(begin + step, rows)))
            at = None if mapping.layers is None else layer
            leaf, finite = _write_part(leaf, part, at, begin, scheme)
            found.append((key, finite.block_until_ready()))  # or parts would queue up in memory
    _check_finite(found, "float32")
    return leaf


@partial(jax.jit, static_argnames="scheme", donate_argnames="leaf")
def _write_part(
    leaf: QuantisedWeight, part: jax.Array, layer: ArrayLike | None, begin: ArrayLike, scheme: quantised.Scheme
) -> tuple[QuantisedWeight, jax.Array]:
    """(the leaf with some channels of a layer written, whether all of them are finite)."""
    new = quantised.quantise(part, scheme)

    def write(whole: jax.Array, new: jax.Array) -> jax.Array:
        start: list[ArrayLike] = [begin if axis == scheme.channel_axis % new.ndim else 0 for axis in range(new.ndim)]
        if layer is None:
            return jax.lax.dynamic_update_slice(whole, new, start)
        return jax.lax.dynamic_update_slice(whole, new[None], [layer, *start])

    return jax.tree.map(write, leaf, new), jnp.isfinite(part).all()


@partial(jax.jit, static_argnums=1)
def _cast(leaf: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """(the leaf in `dtype`, whether all of it is finite)."""
    leaf = leaf.astype(dtype)
    return leaf, jnp.isfinite(leaf).all()


@partial(jax.jit, donate_argnums=0)
def _write_layer(stack: jax.Array, layer: jax.Array, index: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """(the stack with the layer written, whether all of the layer is finite)."""
    layer, finite = _cast(layer, stack.dtype)
    return stack.at[index].set(layer), finite


def save(directory: str | Path, config: ModelConfig, params: Any, dtype: Any) -> None:
    """Write config.json and model.safetensors, as `load` reads them, into an existing directory.

    Raises OSError if they cannot be written, before a disk that is too small is full.
    """
    directory, lm = Path(directory), config.language
    tensors = {}
    for mapping in key_mappings(config):
        leaf = mapping.leaf(params)
        layers = [leaf] if mapping.layers is None else list(leaf)
        for key, layer in zip(mapping.original_keys(), layers, strict=True):
            tensors[key] = jnp.array(mapping.transform.to_original(layer), jnp.dtype(dtype), copy=True)
    files.check_disk_space(directory, sum(tensor.nbytes for tensor in tensors.values()))
    try:
        save_file(tensors, directory / "model.safetensors")
    except SafetensorError as error:
        raise OSError(first_line(error)) from error
    (directory / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner only
    text = {
        "model_type": "llava_qwen",
        "hidden_size": lm.width,
        "num_hidden_layers": lm.layers,
        "head_dim": lm.head_width,
        "num_attention_heads": lm.heads,
        "num_key_value_heads": lm.kv_heads,
        "intermediate_size": lm.mlp,
        "vocab_size": lm.vocabulary,
        "rope_theta": lm.rope_theta,
        "rms_norm_eps": lm.norm_eps,
        "tie_word_embeddings": lm.tied,
        "vxl2": {
            name: getattr(config, name)
            for name in ("resized_grid", "pool", "visual_placeholder", "stop_tokens", "norm_groups", "max_relative")
        },
    }
    vision = {
        "image_size": config.vision.image_size,
        "num_attention_heads": config.vision.heads,
        "layer_norm_eps": config.vision.norm_eps,
    }
    (directory / "config.json").write_text(json.dumps(text, indent=1))
    (directory / "vision_config.json").write_text(json.dumps(vision, indent=1))
