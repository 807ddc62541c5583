"""The parts put together: parameters of the whole model, and frames → visual tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from pallas_kernels.attention import REFERENCE, Kernel
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import dts, qwen2, siglip
from vxl2_jax.models.projector import Projector

Params = Any


def init(key: jax.Array, config: ModelConfig) -> Params:
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
    params: Params, config: ModelConfig, frames: jax.Array, kernel: Kernel = REFERENCE, remat: bool = False
) -> jax.Array:
    """uint8 frames [F, image, image, 3] → SigLIP features [F, grid², C]; `remat` as in `siglip.SigLIP`."""
    tower = siglip.SigLIP(config.vision, kernel, remat)
    return tower.apply({"params": params["vision"]}, siglip.normalise(frames, params["vision"]["position"].dtype))


def group_maps(params: Params, config: ModelConfig, features: jax.Array) -> jax.Array:
    """SigLIP features [4·G, grid², C] → DTS maps [G, resized_grid, resized_grid, C]."""
    maps = dts.resize(features, config.vision.grid, config.resized_grid)
    grouped = dts.regroup(maps, config.frames_per_group)
    module = dts.DTS(config.norm_groups, config.max_relative)
    return module.apply({"params": params["dts"]}, grouped)


def project(params: Params, config: ModelConfig, maps: jax.Array, pool: int | None = None) -> jax.Array:
    """DTS maps [G, H, W, C] → visual tokens [G, V, E]; `pool` overrides the configured window."""
    module = Projector(config.language.width)
    return module.apply({"params": params["projector"]}, maps, config.pool if pool is None else pool)


def encode_frames(
    params: Params, config: ModelConfig, frames: jax.Array, groups_at_once: int = 4, kernel: Kernel = REFERENCE
) -> jax.Array:
    """uint8 frames [4·G, image, image, 3] → visual tokens [G, V, E].

    A few groups at a time, so that the activations of many frames never stand in memory at once. Groups do
    not see each other: any split gives the same tokens.
    """

    def encode(part: jax.Array) -> jax.Array:
        return project(params, config, group_maps(params, config, frame_features(params, config, part, kernel)))

    batch = groups_at_once * config.frames_per_group
    if len(frames) <= batch:
        return encode(frames)
    whole, rest = divmod(len(frames), batch)
    batches = rearrange(frames[: whole * batch], "(b n) y x c -> b n y x c", n=batch)
    tokens = rearrange(jax.lax.map(encode, batches), "b g v e -> (b g) v e")
    return jnp.concatenate([tokens, encode(frames[whole * batch :])]) if rest else tokens
