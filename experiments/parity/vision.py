"""vision.npz: pixels → features → DTS maps → visual tokens."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from experiments.parity.golden import Archive, GoldenError
from experiments.parity.report import FEATURES, Report
from pallas_kernels.attention import REFERENCE, Kernel
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import dts, siglip, video_xl_2
from vxl2_jax.video.preprocess import resize_frame

frame_features = jax.jit(video_xl_2.frame_features, static_argnames=("config", "kernel"))
group_maps = jax.jit(video_xl_2.group_maps, static_argnames="config")
encode_frames = jax.jit(video_xl_2.encode_frames, static_argnames=("config", "groups_at_once", "kernel"))

KINDS = {
    "vision-tower features": r".+_siglip",
    "resized features": r".+_interp",
    "DTS outputs": r".+_dts",
    "projector outputs": r".+_proj",
    "pooled tokens": r".+_pooled",
    "image tiles": r".+_tokens",
    "DTS stages": r".+_stage\d+",
    "preprocessed pixels": r".+_raw_u8",
}


def fit_grids(config: ModelConfig, vision: Archive) -> ModelConfig:
    """The configuration with the feature map's and the pooled map's side as the stored maps have them.

    The original's config.json does not tell them; where a golden set holds no map, the loader's stay.
    """
    for found in vision.matching(r".+_(interp|dts)"):
        config = dataclasses.replace(config, resized_grid=vision[found[0]].shape[-1])
        break
    for found in vision.matching(r".+_pooled"):
        side = round(vision[found[0]].shape[1] ** 0.5)
        config = dataclasses.replace(config, pool=config.resized_grid // side)
        break
    return config


def rebuild(lowres: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Stored pixels [F, 3, h, w] → uint8 frames [F, image, image, 3], every pixel repeated."""
    side = config.vision.image_size
    if lowres.ndim != 4 or side % lowres.shape[2] or side % lowres.shape[3]:
        raise GoldenError(f"vision.npz: pixels of shape {lowres.shape} do not repeat to {side} × {side}")
    return repeat(lowres, "f c y x -> f (y a) (x b) c", a=side // lowres.shape[2], b=side // lowres.shape[3])


def pad_video(frames: np.ndarray, size: int) -> np.ndarray:
    """Whole groups of `size` frames, by copies of the last."""
    return np.concatenate([frames, np.repeat(frames[-1:], -len(frames) % size, axis=0)])


def check(report: Report, vision: Archive, config: ModelConfig, params: Any, kernel: Kernel = REFERENCE) -> None:
    """Every quantity of vision.npz."""
    report.expect_kinds(vision.name, vision, KINDS)
    for found in vision.matching(r"(.+)_lowres_u8"):
        case = found[1]
        frames = rebuild(vision[found[0]], config)
        if f"{case}_tokens" in vision:
            check_tiles(report, vision, config, params, case, frames, kernel)
        else:
            check_frames(report, vision, config, params, case, frames, kernel)
    for case in sorted({found[1] for found in vision.matching(r"(.+)_(?:stage\d+|after_temporal_encoding)")}):
        check_stages(report, vision, config, params, case)
    for found in vision.matching(r"(.+)_raw_u8"):
        check_preprocess(report, vision, config, found[1])


def check_frames(
    report: Report, vision: Archive, config: ModelConfig, params: Any, case: str, frames: np.ndarray, kernel: Kernel
) -> None:
    """A video, or an image (every frame a group of its own; not pooled)."""
    size = config.frames_per_group
    image = any(f"{case}_{kind}" in vision for kind in ("dts_in_corner", "as_video_pooled"))
    grouped = np.repeat(frames, size, axis=0) if image else pad_video(frames, size)
    features = frame_features(params, config, grouped, kernel)
    stored = vision.get(f"{case}_siglip_frames", None)
    # Without a list of frames every frame was stored, once each.
    rows = stored if stored is not None else np.arange(len(frames)) * (size if image else 1)
    maps = dts.resize(features, config.vision.grid, config.resized_grid)
    synthesised = group_maps(params, config, features)
    project = partial(video_xl_2.project, params, config, synthesised)
    quantities = {
        "siglip": lambda: np.asarray(features)[rows],
        "interp": lambda: rearrange(np.asarray(maps)[rows], "f y x c -> f c y x"),
        "dts_in_corner": lambda: rearrange(dts.regroup(maps, size)[0], "t y x c -> c t y x")[:2, :, :3, :3],
        "dts": lambda: rearrange(np.asarray(synthesised), "g y x c -> g c y x"),
        "proj": lambda: project(1),
        "pooled": lambda: project() if image else encode_frames(params, config, grouped, kernel=kernel),
        "as_video_pooled": lambda: encode_frames(params, config, pad_video(frames, size), kernel=kernel),
    }
    for kind, compute in quantities.items():
        if (key := f"{case}_{kind}") in vision:
            report.check(f"vision {key}", compute(), vision[key], FEATURES)


def check_tiles(
    report: Report, vision: Archive, config: ModelConfig, params: Any, case: str, frames: np.ndarray, kernel: Kernel
) -> None:
    """A tiled image: the first tile (the whole image, small) is dropped, each further one pooled."""
    tiles = np.repeat(frames[1:], config.frames_per_group, axis=0)
    tokens = encode_frames(params, config, tiles, kernel=kernel)
    report.check(f"vision {case}_tokens", rearrange(tokens, "g v d -> (g v) d"), vision[f"{case}_tokens"], FEATURES)


def check_stages(report: Report, vision: Archive, config: ModelConfig, params: Any, case: str) -> None:
    """DTS alone: [B, C, T, H, W] in, the output of every encoder part out."""
    stages: list = []
    ours = jnp.asarray(rearrange(vision[f"{case}_in"], "b c t y x -> b t y x c"))
    module = dts.DTS(config.norm_groups, config.max_relative)
    out = module.apply({"params": params["dts"]}, ours, stages)

    def as_stored(a):
        return rearrange(np.asarray(a), "b t y x c -> b c t y x")

    names = ["after_temporal_encoding", *(f"stage{i}" for i in range(len(stages) - 1))]
    for name, stage in zip(names, stages, strict=True):
        if (key := f"{case}_{name}") in vision:
            report.check(f"vision {key}", as_stored(stage), vision[key], FEATURES)
    if f"{case}_out" in vision:
        report.check(f"vision {case}_out", as_stored(out[:, None]), vision[f"{case}_out"], FEATURES)


def check_preprocess(report: Report, vision: Archive, config: ModelConfig, case: str) -> None:
    """Raw frames → pixels, of which a corner, a grid of places and the mean colours are stored."""
    resized = np.stack([resize_frame(frame, config.vision.image_size) for frame in vision[f"{case}_raw_u8"]])
    pixels = rearrange(np.asarray(siglip.normalise(resized)), "f y x c -> f c y x")
    quantities = {
        "out_crop": pixels[:, :, 100:132, 200:232],
        "out_stride16": pixels[:, :, ::16, ::16],
        "out_mean": pixels.mean(axis=(2, 3), dtype=np.float64),
    }
    for kind, got in quantities.items():
        if (key := f"{case}_{kind}") in vision:
            report.check(f"vision {key}", got, vision[key], FEATURES)
