"""Reading and writing the original's Hugging Face directories: config.json and safetensors files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from vxl2_jax.checkpoints.key_mapping import IGNORED, KeyMapping, key_mappings, original_shapes
from vxl2_jax.config import LanguageConfig, ModelConfig, VisionConfig
from vxl2_jax.errors import CheckpointError
from vxl2_jax.models import video_xl_2

_PATCH = "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight"
_RELATIVE = "model.sae.encoder.1.relative_position_k.embeddings_table"


class Shards:
    """The tensors of a directory by key, read on demand."""

    def __init__(self, directory: Path) -> None:
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{directory}: no .safetensors files; give a Hugging Face checkpoint directory")
        index = directory / "model.safetensors.index.json"
        if index.exists():
            shards = sorted(set(_read_json(index)["weight_map"].values()))
            if missing := [name for name in shards if not (directory / name).exists()]:
                raise CheckpointError(
                    f"{directory}: shard {missing[0]} is missing ({len(missing)} in total); download it again"
                )
            files = [directory / name for name in shards]
        self._file_of: dict[str, Any] = {}
        for file in files:
            try:
                handle = safe_open(file, "flax")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{file}: not a readable safetensors file ({error}); download it again"
                ) from error
            self._file_of.update(dict.fromkeys(handle.keys(), handle))

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def keys(self) -> set[str]:
        """All keys."""
        return set(self._file_of)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it. Raises CheckpointError if there is none."""
        if key not in self._file_of:
            raise CheckpointError(f"tensor {key} is missing; is this a Video-XL-2 checkpoint?")
        return tuple(self._file_of[key].get_slice(key).get_shape())

    def get(self, key: str) -> jax.Array:
        """Read a tensor."""
        return self._file_of[key].get_tensor(key)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is not a JSON object; download it again")
    return content


def read_config(directory: Path, shards: Shards) -> ModelConfig:
    """Read the configuration from config.json, optional further JSON files, and tensor shapes.

    The released config.json does not describe the vision tower. The tensors' shapes do, except for the number of heads
    (16 in SO400M) and the border that the patch grid cuts off (384 = 27 × 14 + 6); a vision_config.json can set these.
    "vxl2" in config.json (nano has it) can set resized_grid, pool, visual_placeholder, stop_tokens, norm_groups and
    max_relative. A special_tokens.json (the golden checkpoint has it) can set the visual placeholder and the number of
    visual tokens per group.

    Raises CheckpointError if files, keys or tensors are missing.
    """
    if not (directory / "config.json").exists():
        raise CheckpointError(f"{directory}: no config.json; give a Hugging Face checkpoint directory")
    config = _read_json(directory / "config.json")
    extra = dict(config.get("vxl2", {}))
    special = directory / "special_tokens.json"
    special_tokens = _read_json(special) if special.exists() else {}
    if "visual_placeholder" in special_tokens:
        extra.setdefault("visual_placeholder", special_tokens["visual_placeholder"])
    if "visual_tokens_per_group" in special_tokens:  # after 2×2 pooling
        extra.setdefault("resized_grid", 2 * math.isqrt(special_tokens["visual_tokens_per_group"]))
    if "stop_tokens" in extra:
        extra["stop_tokens"] = tuple(extra["stop_tokens"])
    try:
        language = LanguageConfig(
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads", config["num_attention_heads"]),
            head_width=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            mlp=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            rope_theta=float(config.get("rope_theta", 1e6)),
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise CheckpointError(
            f"{directory}/config.json: {error} is missing; is this a Video-XL-2 checkpoint?"
        ) from error
    if _PATCH not in shards:
        raise CheckpointError(f"{directory}: no tensor {_PATCH}; is this a Video-XL-2 checkpoint?")
    vision = _read_vision_config(directory, shards)
    extra.setdefault("resized_grid", 24 if vision.grid == 27 else vision.grid // 2 * 2)
    extra.setdefault("max_relative", shards.shape(_RELATIVE)[0] // 2)
    return ModelConfig(vision=vision, language=language, **extra)


def _read_vision_config(directory: Path, shards: Shards) -> VisionConfig:
    file = directory / "vision_config.json"
    vision = _read_json(file) if file.exists() else {}
    root = _PATCH.removesuffix("embeddings.patch_embedding.weight")
    width, _, patch, _ = shards.shape(_PATCH)
    grid = round(shards.shape(f"{root}embeddings.position_embedding.weight")[0] ** 0.5)
    layers = sum(key.startswith(f"{root}encoder.layers.") and key.endswith("fc1.weight") for key in shards)
    return VisionConfig(
        image_size=vision.get("image_size", 384 if (grid, patch) == (27, 14) else grid * patch),
        patch_size=patch,
        width=width,
        layers=layers,
        heads=vision.get("num_attention_heads", 16),
        mlp=shards.shape(f"{root}encoder.layers.0.mlp.fc1.weight")[0],
        norm_eps=vision.get("layer_norm_eps", 1e-6),
    )


def check_tensors(config: ModelConfig, shards: Shards) -> None:
    """Raise CheckpointError if keys or shapes are not those of `config`, naming some of them."""
    expected = original_shapes(config, abstract_params(config))
    present = shards.keys()
    missing = sorted(expected.keys() - present)
    unexpected = sorted(
        key
        for key in present - expected.keys()
        if not any(part in key for part in IGNORED) and not (config.language.tied and key == "lm_head.weight")
    )
    misshaped = sorted(
        f"{key} {shards.shape(key)} instead of {expected[key]}"
        for key in expected.keys() & present
        if shards.shape(key) != expected[key]
    )
    parts = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if keys
    ]
    if parts:
        raise CheckpointError(f"the checkpoint does not fit its config.json: {'; '.join(parts)}; download it again")


def abstract_params(config: ModelConfig) -> Any:
    """The parameter tree as ShapeDtypeStructs; allocates nothing."""
    return jax.eval_shape(partial(video_xl_2.init, config=config), jax.ShapeDtypeStruct((2,), jnp.uint32))


def load(
    directory: str | Path, dtype: Any = "bfloat16", progress: Callable[[int, int], None] | None = None
) -> tuple[ModelConfig, Any]:
    """Load a checkpoint onto the default device.

    Tensors are read one by one, so there is never a second copy of the model in memory.

    Args:
      directory: with config.json and safetensors files.
      dtype: all parameters are cast to it.
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
    return config, build_params(key_mappings(config), shards.get, dtype, progress)


def build_params(
    mappings: list[KeyMapping],
    get: Callable[[str], ArrayLike],
    dtype: Any,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """A parameter tree from the original's tensors, which `get` returns by key."""
    params: dict = {}
    for done, mapping in enumerate(mappings):
        parent = params
        for part in mapping.path[:-1]:
            parent = parent.setdefault(part, {})
        parent[mapping.path[-1]] = _build_leaf(mapping, get, jnp.dtype(dtype))
        if progress:
            progress(done + 1, len(mappings))
    return params


def _build_leaf(mapping: KeyMapping, get: Callable[[str], ArrayLike], dtype: Any) -> jax.Array:
    layers = (mapping.transform.to_ours(jnp.asarray(get(key))) for key in mapping.original_keys())
    first = next(layers)
    if mapping.layers is None:
        return first.astype(dtype)
    # Write the layers into a stack that is allocated once: stacking at the end would hold all of them twice.
    stack = _write_layer(jnp.zeros((mapping.layers, *first.shape), dtype), first, 0)
    del first
    for i, layer in enumerate(layers, 1):
        stack = _write_layer(stack, layer, i)
    return stack


@partial(jax.jit, donate_argnums=0)
def _write_layer(stack: jax.Array, layer: jax.Array, index: ArrayLike) -> jax.Array:
    return stack.at[index].set(layer.astype(stack.dtype))


def save(directory: str | Path, config: ModelConfig, params: Any, dtype: Any) -> None:
    """Write config.json and model.safetensors, as `load` reads them, into an existing directory."""
    directory, lm = Path(directory), config.language
    tensors = {}
    for mapping in key_mappings(config):
        leaf = mapping.leaf(params)
        layers = [leaf] if mapping.layers is None else list(leaf)
        for key, layer in zip(mapping.original_keys(), layers, strict=True):
            tensors[key] = jnp.array(mapping.transform.to_original(layer), jnp.dtype(dtype), copy=True)
    save_file(tensors, directory / "model.safetensors")
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
