"""Reading and writing the original's Hugging Face directories: config.json and safetensors files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.flax import save_file

from vxl2_jax import files
from vxl2_jax.checkpoints import assemble
from vxl2_jax.checkpoints.config_files import read_config
from vxl2_jax.checkpoints.key_mapping import IGNORED, KeyMapping, WeightTransform, key_mappings, original_shapes
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
    placed: Callable[[Any], Any] | None = None,
) -> tuple[ModelConfig, Any]:
    """Load a checkpoint.

    What is large or quantised is read in parts of 2²² numbers, each of which is cast or quantised on the devices that need
    it: there is never a second copy of a large parameter in memory, and what is quantised is never wide as a whole.

    Args:
      directory: with config.json and safetensors files.
      dtype: all parameters are cast to it that are not quantised.
      weights: one of `models.quantised.SETTINGS`.
      progress: called with (leaves done, all leaves) after each leaf.
      placed: gives the parameter tree of ShapeDtypeStructs the shardings to be. None: parameters are on the default device.

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
    abstract = placed(abstract) if placed else abstract
    return config, _build_tree(
        mappings, lambda one: _build_leaf(one, shards.get, one.leaf(abstract), weights), progress
    )


def build_params(mappings: list[KeyMapping], get: Callable[[str], np.ndarray], dtype: Any) -> dict:
    """A parameter tree from the original's tensors, which `get` returns by key."""

    def build(mapping: KeyMapping) -> Any:
        keys = mapping.original_keys()
        shape = np.shape(mapping.transform.to_ours(get(keys[0])))
        stacked = () if mapping.layers is None else (mapping.layers,)
        return _build_leaf(mapping, get, jax.ShapeDtypeStruct((*stacked, *shape), jnp.dtype(dtype)))

    return _build_tree(mappings, build)


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


def _build_leaf(
    mapping: KeyMapping, get: Callable[[str], Any], abstract: Any, weights: str = quantised.WIDE
) -> jax.Array | QuantisedWeight:
    keys, scheme = mapping.original_keys(), quantised.scheme_of(mapping.path, weights)
    if assemble.is_small(abstract):
        leaf, finite = _on_host(map(get, keys), mapping, abstract)
    else:
        leaf, finite = assemble.assemble(
            abstract,
            map(get, keys),
            _Make(mapping.transform, None if scheme else abstract.dtype, scheme),
            stacked=mapping.layers is not None,
            axis=mapping.transform.rows_axis,
        )
    for key, is_finite in zip(keys, finite, strict=True):
        if not is_finite:
            name = "float32" if scheme else abstract.dtype.name
            files.WEIGHTS.fail(f"tensor {key}", f"has NaN or infinite values as {name}")
    return leaf


def _on_host(
    tensors: Iterable[Any], mapping: KeyMapping, abstract: jax.ShapeDtypeStruct
) -> tuple[jax.Array, list[np.bool]]:
    """(a leaf that is small, whether all of each tensor is finite)."""
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused
        layers = [np.asarray(mapping.transform.to_ours(tensor[()])).astype(abstract.dtype) for tensor in tensors]
    leaf = layers[0] if mapping.layers is None else np.stack(layers)
    return assemble.place(leaf, abstract), [np.isfinite(layer).all() for layer in layers]


@dataclass(frozen=True)
class _Make:
    """What is made of some rows of the original's tensor: our axes, in `dtype` or quantised."""

    transform: WeightTransform
    dtype: Any
    scheme: quantised.Scheme | None

    def __call__(self, rows: jax.Array) -> Any:
        ours = self.transform.to_ours(rows)
        return quantised.quantise(ours, self.scheme) if self.scheme else ours.astype(self.dtype)


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
