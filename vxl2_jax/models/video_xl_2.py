"""The whole model: its parameters, and frames → visual tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from pallas_kernels.attention import REFERENCE, Kernel
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import dts, qwen2, siglip
from vxl2_jax.models.projector import Projector

Params = Any


def _apply(module: nn.Module, params: Params, *inputs: Any) -> Any:
    return module.apply({"params": params}, *inputs)


def init(key: PRNGKeyArray, config: ModelConfig) -> Params:
    """Random fp32 parameters: {"vision", "dts", "projector", "language"}."""
    vision_key, dts_key, projector_key, language_key = jax.random.split(key, 4)
    side, grid, width = config.vision.image_size, config.resized_grid, config.vision.width
    module = dts.DTS(config.norm_groups, config.max_relative)
    maps = jnp.zeros((1, config.frames_per_group, grid, grid, width))
    return {
        "vision": siglip.SigLIP(config.vision).init(vision_key, jnp.zeros((1, side, side, 3)))["params"],
        "dts": module.init(dts_key, maps)["params"],
        "projector": Projector(config.language.width).init(projector_key, maps[:, 0])["params"],
        "language": qwen2.init(language_key, config.language),
    }


def frame_features(
    params: Params,
    config: ModelConfig,
    frames: UInt8[ArrayLike, "F image image 3"],
    kernel: Kernel = REFERENCE,
    remat: bool = False,
) -> Float[Array, "F patches width"]:
    """Frames → SigLIP patch features; `remat` as in `siglip.SigLIP`."""
    tower = siglip.SigLIP(config.vision, kernel, remat)
    return _apply(tower, params["vision"], siglip.normalise(frames, params["vision"]["position"].dtype))


def group_maps(
    params: Params, config: ModelConfig, features: Float[Array, "F patches width"]
) -> Float[Array, "G {config.resized_grid} {config.resized_grid} width"]:
    """SigLIP features of F = 4·G frames → DTS maps."""
    maps = dts.resize(features, config.vision.grid, config.resized_grid)
    grouped = dts.regroup(maps, config.frames_per_group)
    return _apply(dts.DTS(config.norm_groups, config.max_relative), params["dts"], grouped)


def project(
    params: Params, config: ModelConfig, maps: Float[Array, "G y x width"], pool: int | None = None
) -> Float[Array, "G V E"]:
    """DTS maps → visual tokens; `pool` overrides the configured pooling window."""
    return _apply(Projector(config.language.width), params["projector"], maps, config.pool if pool is None else pool)


def encode_frames(
    params: Params,
    config: ModelConfig,
    frames: UInt8[ArrayLike, "F image image 3"],
    groups_at_once: int = 4,
    kernel: Kernel = REFERENCE,
) -> Float[Array, "G V E"]:
    """F = 4·G frames → visual tokens.

    Runs `groups_at_once` groups at a time, to bound the memory of the activations. Groups are independent, so any
    split gives the same tokens.
    """

    def encode(part: UInt8[Array, "f image image 3"]) -> Float[Array, "g V E"]:
        return project(params, config, group_maps(params, config, frame_features(params, config, part, kernel)))

    frames = jnp.asarray(frames)
    batch = groups_at_once * config.frames_per_group
    if len(frames) <= batch:
        return encode(frames)
    whole, rest = divmod(len(frames), batch)
    batches = rearrange(frames[: whole * batch], "(b n) y x c -> b n y x c", n=batch)
    tokens = rearrange(jax.lax.map(encode, batches), "b g v e -> (b g) v e")
    return jnp.concatenate([tokens, encode(frames[whole * batch :])]) if rest else tokens
