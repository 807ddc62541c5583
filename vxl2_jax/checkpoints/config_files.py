"""The JSON files of a Hugging Face directory that describe the model: config.json and two optional ones.

Each is read into a struct whose types bound every value. What would change the computation and is not implemented is
refused; other keys are ignored.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import msgspec

from vxl2_jax import files
from vxl2_jax.checkpoints.shards import Shards
from vxl2_jax.config import (
    Epsilon,
    Grid,
    Heads,
    LanguageConfig,
    Layers,
    ModelConfig,
    RopeTheta,
    Size,
    TokenId,
    VisionConfig,
    Vocabulary,
)
from vxl2_jax.errors import CheckpointError, shown

_TOWER = "model.vision_tower.vision_tower.vision_model."
_PATCH = f"{_TOWER}embeddings.patch_embedding.weight"
_RELATIVE = "model.sae.encoder.1.relative_position_k.embeddings_table"

_UNSUPPORTED = {
    "hidden_act": ("silu", "swish"),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "quantization_config": (),
    "use_pos_skipping": (False,),
    # The way from pixels to visual tokens. The tower's last block is dropped, which is what -2 means.
    "mm_vision_select_layer": (-2,),
    "mm_vision_select_feature": ("patch",),
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_resampler_type": ("spatial_pool",),
    "mm_spatial_pool_mode": ("average",),
    "mm_patch_merge_type": ("unires", "flat"),  # the same for a video
    "mm_use_im_start_end": (False,),
    "mm_newline_position": ("no_token",),
    "add_faster_video": (False,),
    "add_time_instruction": (False,),
}
"""Keys of config.json that change what is computed, and the values besides null that are supported."""


class _Rope(msgspec.Struct, frozen=True):
    """`rope_parameters` (transformers 5) or `rope_scaling` (before): only the plain rotary embedding is implemented."""

    rope_type: Literal["default"] | None = None
    type: Literal["default"] | None = None
    rope_theta: RopeTheta | None = None
    factor: Literal[1] | None = None
    partial_rotary_factor: Literal[1] | None = None


class _Extra(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """ "vxl2" in config.json: what the original's code has as constants. UNSET: taken from other files or tensors."""

    resized_grid: Grid | msgspec.UnsetType = msgspec.UNSET
    pool: Grid | msgspec.UnsetType = msgspec.UNSET
    visual_placeholder: TokenId | msgspec.UnsetType = msgspec.UNSET
    stop_tokens: tuple[TokenId, ...] | msgspec.UnsetType = msgspec.UNSET
    norm_groups: Size | msgspec.UnsetType = msgspec.UNSET
    max_relative: Size | msgspec.UnsetType = msgspec.UNSET


class _Config(msgspec.Struct, frozen=True):
    """config.json."""

    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Heads
    intermediate_size: Size
    vocab_size: Vocabulary
    num_key_value_heads: Heads | None = None
    head_dim: Size | None = None
    rope_theta: RopeTheta | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None
    layer_types: tuple[Literal["full_attention"], ...] | None = None
    rms_norm_eps: Epsilon = 1e-6
    tie_word_embeddings: bool = False
    mm_spatial_pool_stride: Grid | None = None
    vxl2: _Extra = _Extra()


class _SpecialTokens(msgspec.Struct, frozen=True):
    """special_tokens.json, which checkpoints with other token ids than the released one have."""

    visual_placeholder: TokenId | None = None
    visual_tokens_per_group: Size | None = None


class _Vision(msgspec.Struct, frozen=True):
    """vision_config.json."""

    image_size: Size | None = None
    num_attention_heads: Heads = 16
    layer_norm_eps: Epsilon = 1e-6
    hidden_act: Literal["gelu_pytorch_tanh"] | None = None


_Struct = TypeVar("_Struct", _Config, _SpecialTokens, _Vision)


def read_config(directory: Path, shards: Shards) -> ModelConfig:
    """Read the configuration from config.json, optional further JSON files, and tensor shapes.

    The released config.json does not describe the vision tower. The tensors' shapes do, except for the number of heads
    (16 in SO400M) and the border that the patch grid cuts off (384 = 27 × 14 + 6); a vision_config.json can set these.
    "vxl2" in config.json (nano has it) can set what the original's code has as constants. A special_tokens.json (the
    golden checkpoint has it) can set the visual placeholder and the number of visual tokens per group.

    Raises CheckpointError if a file, key or tensor is missing, a value is out of range, or the model needs something that
    is not implemented.
    """
    path = directory / "config.json"
    if not files.is_there(path):
        raise CheckpointError(f"{directory}: no config.json; give a Hugging Face checkpoint directory")
    content = files.read_json_object(path, files.CHECKPOINT_JSON)
    config = _convert(path, content, _Config)
    for key, supported in _UNSUPPORTED.items():
        if (value := content.get(key)) is not None and value not in supported:
            _refuse(path, f"{key} = {shown(value)}")
    if _PATCH not in shards:
        raise CheckpointError(f"{directory}: no tensor {_PATCH}; is this a Video-XL-2 checkpoint?")
    vision = _read_optional(directory / "vision_config.json", _Vision)
    special = _read_optional(directory / "special_tokens.json", _SpecialTokens)
    try:
        language, tower = _language_config(config), _vision_config(vision, shards)
        return ModelConfig(vision=tower, language=language, **_further_fields(config, special, tower, shards))
    except ValueError as error:
        files.CHECKPOINT_JSON.fail(path, str(error), error)


def _convert(path: Path, content: Any, struct: type[_Struct]) -> _Struct:
    try:
        return msgspec.convert(content, struct)
    except ValueError as error:  # of msgspec, or of a key that is no Unicode text
        problem, _, place = str(error).partition(" - at ")
        if value := re.fullmatch("Invalid enum value (.*)", problem):
            _refuse(path, f"{place.strip('`').removeprefix('$.')} = {value[1]:.60}")
        files.CHECKPOINT_JSON.fail(path, f"{place.strip('`').removeprefix('$.')}: {problem}".removeprefix(": "), error)


def _refuse(path: Path, setting: str) -> NoReturn:
    raise CheckpointError(
        f"{path}: {setting} changes the computation in a way that is not implemented; use another model"
    )


def _read_optional(path: Path, struct: type[_Struct]) -> _Struct:
    return _convert(path, files.read_json(path, files.CHECKPOINT_JSON) if files.is_there(path) else {}, struct)


def _language_config(config: _Config) -> LanguageConfig:
    """Raises ValueError for sizes that do not fit each other."""
    heads, width = config.num_attention_heads, config.hidden_size
    if config.head_dim is None and width % heads:
        raise ValueError(f"hidden_size, {width}, must be a multiple of num_attention_heads, {heads}, without head_dim")
    ropes = (config, config.rope_parameters, config.rope_scaling)
    thetas = {rope.rope_theta for rope in ropes if rope and rope.rope_theta is not None}
    if len(thetas) > 1:
        raise ValueError(f"rope_theta has several values, {' and '.join(map(str, sorted(thetas)))}")
    if not thetas:
        raise ValueError("rope_theta is missing")
    return LanguageConfig(
        width=width,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        head_width=config.head_dim or width // heads,
        mlp=config.intermediate_size,
        vocabulary=config.vocab_size,
        rope_theta=thetas.pop(),
        norm_eps=config.rms_norm_eps,
        tied=config.tie_word_embeddings,
    )


def _shape(shards: Shards, key: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor. Raises ValueError if it has another number of dimensions, or is empty."""
    shape = shards.shape(key)
    if len(shape) != dimensions or not all(shape):
        raise ValueError(f"tensor {key} has the shape {shape} instead of {dimensions} dimensions")
    return shape


def _vision_config(vision: _Vision, shards: Shards) -> VisionConfig:
    """Raises ValueError for sizes that do not fit each other."""
    width, _, patch, _ = _shape(shards, _PATCH, 4)
    grid = math.isqrt(_shape(shards, f"{_TOWER}embeddings.position_embedding.weight", 2)[0])
    layers = sum(key.startswith(f"{_TOWER}encoder.layers.") and key.endswith("fc1.weight") for key in shards)
    side = vision.image_size or (384 if (grid, patch) == (27, 14) else grid * patch)
    if side // patch != grid:
        raise ValueError(f"image_size, {side}, does not have the {grid} patches of {patch} pixels of the weights")
    return VisionConfig(
        image_size=side,
        patch_size=patch,
        width=width,
        layers=layers,
        heads=vision.num_attention_heads,
        mlp=_shape(shards, f"{_TOWER}encoder.layers.0.mlp.fc1.weight", 2)[0],
        norm_eps=vision.layer_norm_eps,
    )


def _further_fields(config: _Config, special: _SpecialTokens, vision: VisionConfig, shards: Shards) -> dict[str, Any]:
    """The other fields of ModelConfig that differ from its defaults. Raises ValueError for values that do not fit."""
    fields = {
        "resized_grid": 24 if vision.grid == 27 else vision.grid // 2 * 2,
        "max_relative": _shape(shards, _RELATIVE, 2)[0] // 2,
    }
    if special.visual_placeholder is not None:
        fields["visual_placeholder"] = special.visual_placeholder
    extra = msgspec.to_builtins(config.vxl2)
    if config.mm_spatial_pool_stride is not None:
        fields["pool"] = config.mm_spatial_pool_stride
        if extra.get("pool", fields["pool"]) != fields["pool"]:
            raise ValueError(f"mm_spatial_pool_stride is {fields['pool']}, and pool of vxl2 is {extra['pool']}")
    if special.visual_tokens_per_group is not None:
        pool = extra.get("pool", fields.get("pool", ModelConfig.pool))
        fields["resized_grid"] = pool * math.isqrt(special.visual_tokens_per_group)
    fields |= extra
    if "stop_tokens" in fields:
        fields["stop_tokens"] = tuple(fields["stop_tokens"])
    for name in ("visual_placeholder", "stop_tokens"):
        ids = fields.get(name, ())
        if any(token >= config.vocab_size for token in (ids if isinstance(ids, tuple) else (ids,))):
            raise ValueError(f"{name}, {ids}, must be below vocab_size, {config.vocab_size}")
    return fields
