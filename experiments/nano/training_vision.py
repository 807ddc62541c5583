"""Stage 1: the SigLIP tower as a classifier of patches: which picture covers each one's centre."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.nano import training_frames
from experiments.synthetic import pictures
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import siglip

Params = Any
NAMES = len(pictures.load()[0])
NONE = NAMES  # the class of patches without a picture


def init(key: jax.Array, config: ModelConfig) -> Params:
    """The tower, and a linear reading head that is thrown away afterwards."""
    tower_key, head_key = jax.random.split(key)
    side, width = config.vision.image_size, config.vision.width
    tower = siglip.SigLIP(config.vision).init(tower_key, jnp.zeros((1, side, side, 3)))["params"]
    head = {"kernel": 0.02 * jax.random.normal(head_key, (width, NAMES + 1)), "bias": jnp.zeros(NAMES + 1)}
    return {"vision": tower, "head": head}


def loss(params: Params, config: ModelConfig, pixels: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict]:
    """Mean cross-entropy over patches. Shapes: pixels uint8 [F, 98, 98, 3], labels int32 [F, 49]."""
    images = siglip.normalise(pixels, jnp.float32)
    features = siglip.SigLIP(config.vision).apply({"params": params["vision"]}, images)
    scores = features @ params["head"]["kernel"] + params["head"]["bias"]
    each = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    right, shown = scores.argmax(-1) == labels, labels != NONE
    # A frame's picture is read off as the name with the greatest total score over its patches.
    voted = jax.nn.softmax(scores)[..., :NAMES].sum(1).argmax(-1)
    name = labels.min(-1)  # NONE is the greatest label
    there = name != NONE

    def share(hit, of):
        return (hit & of).sum() / jnp.maximum(of.sum(), 1)

    return each.mean(), {
        "patches": share(right, shown),
        "background": share(right, ~shown),
        "frames": share(voted == name, there),
    }


def batch(bank: training_frames.Frames, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random frames of the part of the bank that is rendered, seven in eight with a picture."""
    groups, frames = rng.integers(0, bank.done, 3 * size), rng.integers(0, 4, 3 * size)
    empty = bank.names[groups, frames] < 0
    keep = np.concatenate([np.flatnonzero(~empty)[: size - size // 8], np.flatnonzero(empty)[: size // 8]])
    groups, frames = groups[keep], frames[keep]
    pixels, boxes = bank.pixels[groups, frames], bank.boxes[groups, frames]
    labels = training_frames.covered(bank.names[groups, frames], boxes, 7, NONE)
    return _recolour(pixels, rng), labels.reshape(len(keep), -1)


def _recolour(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A slight random gain and offset per frame and channel."""
    shape = (len(pixels), 1, 1, 3)
    gain = rng.normal(1, 0.05, shape).astype(np.float32)
    offset = rng.normal(0, 6, shape).astype(np.float32)
    return np.clip(pixels * gain + offset, 0, 255).astype(np.uint8)


def settle(tower: Params, head: dict, features: np.ndarray) -> tuple[Params, dict]:
    """The same tower and head, but the tower's outputs have mean zero and standard deviation one.

    DTS takes the raw residual stream; with a large common offset it does not learn. Blocks normalise
    what they read, so scaling everything that writes to the stream scales the output and nothing else.
    """
    mean = features.reshape(-1, features.shape[-1]).astype(np.float64).mean(0)
    factor = 1 / (features.astype(np.float64) - mean).std()
    tower = jax.tree.map(np.array, tower)
    tower["position"] *= factor
    writers = (tower["patch"], tower["layers"]["attention"]["out"], tower["layers"]["mlp_out"])
    for writer in writers:
        writer["kernel"] *= factor
        writer["bias"] *= factor
    tower["layers"]["mlp_out"]["bias"][-1] -= (factor * mean).astype(np.float32)
    return tower, {
        "kernel": head["kernel"] / np.float32(factor),
        "bias": head["bias"] + mean.astype(np.float32) @ head["kernel"],
    }
