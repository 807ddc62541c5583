"""Read (and write) a Hugging Face directory of the original: config.json + safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from vxl2_jax.checkpoints import names
from vxl2_jax.config import LanguageConfig, ModelConfig, VisionConfig
from vxl2_jax.errors import CheckpointError
from vxl2_jax.models import video_xl_2

_PATCH = "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight"
_RELATIVE = "model.sae.encoder.1.relative_position_k.embeddings_table"


class Shards:
    """The tensors of a directory by name, opened lazily, one file handle per shard."""

    def __init__(self, directory: Path):
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{directory}: no .safetensors files; give a Hugging Face checkpoint directory")
        index = directory / "model.safetensors.index.json"
        if index.exists():
            wanted = sorted(set(_read_json(index)["weight_map"].values()))
            if absent := [name for name in wanted if not (directory / name).exists()]:
                raise CheckpointError(
                    f"{directory}: shard {absent[0]} is missing ({len(absent)} in all); download it again"
                )
            files = [directory / name for name in wanted]
        self._home: dict[str, Any] = {}
        for file in files:
            try:
                handle = safe_open(file, "flax")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{file}: not a readable safetensors file ({error}); download it again"
                ) from error
            self._home.update(dict.fromkeys(handle.keys(), handle))

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def keys(self) -> set[str]:
        return set(self._home)

    def shape(self, key: str) -> tuple[int, ...]:
        if key not in self._home:
            raise CheckpointError(f"tensor {key} is missing; is this a Video-XL-2 checkpoint?")
        return tuple(self._home[key].get_slice(key).get_shape())

    def get(self, key: str) -> jax.Array:
        return self._home[key].get_tensor(key)


def _read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return found


def read_config(directory: Path, shards: Shards) -> ModelConfig:
    """Geometry from config.json, from vision_config.json where there is one, else from tensor shapes.

    The released config.json does not describe its vision tower; the shapes of the tensors do, save the
    number of heads (16 in SO400M) and the border that the patch grid cuts off (384 = 27 × 14 + 6).
    Keys that the original lacks may be given under "vxl2" (nano does): resized_grid, pool,
    visual_placeholder, stop_tokens, norm_groups, max_relative. A special_tokens.json, as the golden checkpoint
    has, gives the placeholder and the visual tokens of a group.
    """
    if not (directory / "config.json").exists():
        raise CheckpointError(f"{directory}: no config.json; give a Hugging Face checkpoint directory")
    text = _read_json(directory / "config.json")
    extra = dict(text.get("vxl2", {}))
    special = directory / "special_tokens.json"
    given = _read_json(special) if special.exists() else {}
    if "visual_placeholder" in given:
        extra.setdefault("visual_placeholder", given["visual_placeholder"])
    if "visual_tokens_per_group" in given:  # after 2×2 pooling
        extra.setdefault("resized_grid", 2 * math.isqrt(given["visual_tokens_per_group"]))
    if "stop_tokens" in extra:
        extra["stop_tokens"] = tuple(extra["stop_tokens"])
    try:
        language = LanguageConfig(
            width=text["hidden_size"],
            layers=text["num_hidden_layers"],
            heads=text["num_attention_heads"],
            kv_heads=text.get("num_key_value_heads", text["num_attention_heads"]),
            head_width=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
            mlp=text["intermediate_size"],
            vocabulary=text["vocab_size"],
            rope_theta=float(text.get("rope_theta", 1e6)),
            norm_eps=text.get("rms_norm_eps", 1e-6),
            tied=bool(text.get("tie_word_embeddings", False)),
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
    side = directory / "vision_config.json"
    given = _read_json(side) if side.exists() else {}
    root = _PATCH.removesuffix("embeddings.patch_embedding.weight")
    width, _, patch, _ = shards.shape(_PATCH)
    grid = round(shards.shape(f"{root}embeddings.position_embedding.weight")[0] ** 0.5)
    layers = sum(key.startswith(f"{root}encoder.layers.") and key.endswith("fc1.weight") for key in shards)
    return VisionConfig(
        image_size=given.get("image_size", 384 if (grid, patch) == (27, 14) else grid * patch),
        patch_size=patch,
        width=width,
        layers=layers,
        heads=given.get("num_attention_heads", 16),
        mlp=shards.shape(f"{root}encoder.layers.0.mlp.fc1.weight")[0],
        norm_eps=given.get("layer_norm_eps", 1e-6),
    )


def check(config: ModelConfig, shards: Shards) -> None:
    """Compare keys and shapes with what `config` needs.

    Raises CheckpointError with one line that counts and names missing, unexpected and mis-shaped keys.
    """
    expected = names.original_shapes(config, abstract_params(config))
    present = shards.keys()
    missing = sorted(expected.keys() - present)
    unexpected = sorted(
        key
        for key in present - expected.keys()
        if not any(part in key for part in names.IGNORED) and not (config.language.tied and key == "lm_head.weight")
    )
    misshaped = sorted(
        f"{key} {shards.shape(key)} instead of {expected[key]}"
        for key in expected.keys() & present
        if shards.shape(key) != expected[key]
    )
    parts = [
        f"{len(found)} {kind} ({', '.join(found[:3])}{', …' if len(found) > 3 else ''})"
        for kind, found in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if found
    ]
    if parts:
        raise CheckpointError(f"the checkpoint does not fit its configuration: {'; '.join(parts)}")


def abstract_params(config: ModelConfig) -> Any:
    """The parameter tree as shapes only; no memory is taken."""
    return jax.eval_shape(partial(video_xl_2.init, config=config), jax.ShapeDtypeStruct((2,), jnp.uint32))


def load(
    directory: str | Path, dtype: Any = "bfloat16", progress: Callable[[int, int], None] | None = None
) -> tuple[ModelConfig, Any]:
    """Load a directory tensor by tensor, each cast and laid out on the default device as it comes.

    Returns (config, params). No second copy of the model ever stands in memory: a stacked leaf is
    allocated once and its layers are written into it. `progress(done, total)` is called per leaf.
    Raises CheckpointError for a missing, damaged or foreign checkpoint.
    """
    directory = Path(directory)
    shards = Shards(directory)
    config = read_config(directory, shards)
    check(config, shards)
    dtype, table = jnp.dtype(dtype), names.rules(config)
    params: dict = {}
    for done, rule in enumerate(table):
        leaf = params
        for part in rule.path[:-1]:
            leaf = leaf.setdefault(part, {})
        leaf[rule.path[-1]] = assemble_state_dict(rule, shards.get, dtype)
        if progress:
            progress(done + 1, len(table))
    return config, params


@partial(jax.jit, donate_argnums=0)
def _write_layer(stack: jax.Array, layer: jax.Array, index: jax.Array) -> jax.Array:
    return stack.at[index].set(layer.astype(stack.dtype))


def assemble_state_dict(rule: names.KeyMapping, get: Callable[[str], jax.Array], dtype: Any) -> jax.Array:
    """One leaf of our tree from the original's tensors, stacked over layers where the rule says so."""
    if rule.layers is None:
        return jnp.asarray(rule.layout.to_ours(jnp.asarray(get(rule.source)))).astype(dtype)
    stack = None
    for i, key in enumerate(rule.sources()):
        layer = rule.layout.to_ours(jnp.asarray(get(key)))
        if stack is None:
            stack = jnp.zeros((rule.layers, *layer.shape), dtype)
        stack = _write_layer(stack, layer, i)
    return stack


def save(directory: str | Path, config: ModelConfig, params: Any, dtype: Any) -> None:
    """Write config.json and model.safetensors as `load` reads them, into an existing directory."""
    directory, lm = Path(directory), config.language
    tensors = {}
    for rule in names.rules(config):
        leaf = params
        for part in rule.path:
            leaf = leaf[part]
        parts = [leaf] if rule.layers is None else list(leaf)
        for key, part in zip(rule.sources(), parts, strict=True):
            tensors[key] = jnp.array(rule.layout.to_original(part), jnp.dtype(dtype), copy=True)
    save_file(tensors, directory / "model.safetensors")
    (directory / "model.safetensors").chmod(0o644)  # the library makes it readable for its owner alone
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
