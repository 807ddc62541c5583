"""The vision half: patches, then visual tokens, learn the name of the picture that they show."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from experiments.nano import directions
from experiments.nano.frames import FRAMES, NOTHING, Bank, covered
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import video_xl_2

Params = Any
Measured = tuple[jax.Array, dict[str, jax.Array]]


def patch_loss(params: Params, config: ModelConfig, batch: dict[str, Any]) -> Measured:
    """Cross-entropy of the picture that covers each patch's centre, read along a fixed direction per picture.

    DTS does not learn from features with a large common offset. So another term keeps them near mean 0 and variance 1.

    Shapes: frames uint8 [F, 98, 98, 3], labels int32 [F, 49].
    """
    features = video_xl_2.frame_features(params, config, batch["frames"])
    width = config.vision.width
    scores = 3 * features @ directions.directions(4, NOTHING + 1, slice(0, width), width).T
    named = optax.softmax_cross_entropy_with_integer_labels(scores, batch["labels"]).mean()
    mean = features.mean((0, 1))
    offset, variance = jnp.square(mean).mean(), jnp.square(features - mean).mean()
    labels = jax.nn.one_hot(batch["labels"], NOTHING + 1)
    measures = {"offset": offset, "variance": variance, **_measures(scores, labels)}
    return named + 0.1 * (offset + jnp.square(jnp.log(variance))), measures


def token_loss(params: Params, config: ModelConfig, batch: dict[str, Any]) -> Measured:
    """Cross-entropy of the names that each visual token shows, and squared distance to their directions.

    Shapes: frames uint8 [G, 4, 98, 98, 3], labels float32 [G, 9, NOTHING + 1], soft.
    """
    rows, labels = directions.visual_tokens(), batch["labels"]
    tokens = encode(params, config, batch["frames"])
    scores = 10 * tokens @ rows.T
    named = optax.softmax_cross_entropy(scores, labels).mean()
    distance = jnp.square(tokens - labels @ rows).sum(-1).mean()
    return named + distance, {"distance": distance, **_measures(scores, labels)}


def encode(params: Params, config: ModelConfig, frames: Any) -> jax.Array:
    """Visual tokens [G, 9, E] of frames [G, 4, 98, 98, 3]."""
    features = video_xl_2.frame_features(params, config, rearrange(frames, "g f y x c -> (g f) y x c"))
    return video_xl_2.project(params, config, video_xl_2.group_maps(params, config, features))


def _measures(scores: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Fractions that are right: of all rows, of those that show a picture, and of the items that show one, by the sum of
    their rows' probabilities. Shapes [items, rows, NOTHING + 1]."""
    right = jnp.take_along_axis(labels, scores.argmax(-1)[..., None], -1)[..., 0] > 0
    shown = labels[..., NOTHING] == 0
    there = labels[..., :NOTHING].sum(1)
    voted = jax.nn.softmax(scores)[..., :NOTHING].sum(1).argmax(-1)
    hit = jnp.take_along_axis(there, voted[:, None], -1)[:, 0] > 0

    def fraction(hits: jax.Array, of: jax.Array) -> jax.Array:
        return (hits & of).sum() / jnp.maximum(of.sum(), 1)

    return {
        "tokens": jnp.float32(right.size),
        "accuracy": right.mean(),
        "pictures": fraction(right, shown),
        "items": fraction(hit, there.sum(-1) > 0),
    }


def patch_batch(bank: Bank, rng: np.random.Generator, size: int = 96) -> dict[str, np.ndarray]:
    """Random frames, seven in eight with a picture."""
    places = rng.integers(0, bank.names.size, 4 * size)
    empty = bank.names.reshape(-1)[places] < 0
    places = np.concatenate([places[~empty][: size - size // 8], places[empty][: size // 8]])
    place = np.divmod(places, FRAMES)
    labels = covered(bank.names[place], bank.boxes[place], 7)
    return {"frames": _recolour(bank.pixels[place], rng), "labels": labels.reshape(len(places), -1)}


def token_batch(bank: Bank, rng: np.random.Generator, size: int = 64) -> dict[str, np.ndarray]:
    """Random runs of four frames inside a clip, half of them back to front."""
    clip = rng.choice(len(bank.starts) - 1, size, p=np.diff(bank.starts) / bank.starts[-1])
    first = rng.integers(FRAMES * bank.starts[clip], FRAMES * bank.starts[clip + 1] - FRAMES + 1)
    places = first[:, None] + np.arange(FRAMES)
    back = rng.random(size) < 0.5
    places[back] = places[back, ::-1]
    place = np.divmod(places, FRAMES)
    return {
        "frames": _recolour(bank.pixels[place], rng),
        "labels": token_labels(bank.names[place], bank.boxes[place]),
    }


def token_labels(names: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """What each visual token should name: names [G, 4], boxes [G, 4, 4] → soft float32 [G, 9, NOTHING + 1].

    A token shows a picture that covers the centre of any of its four cells in any frame.
    """
    cells = rearrange(covered(names, boxes, 6), "g f (y py) (x px) -> g (y x) (f py px)", py=2, px=2)
    one_hot = np.zeros((*cells.shape[:2], NOTHING + 1), np.float32)
    np.put_along_axis(one_hot, cells, 1.0, axis=-1)
    one_hot[..., NOTHING] = one_hot[..., :NOTHING].sum(-1) == 0
    return one_hot / one_hot.sum(-1, keepdims=True)


def _recolour(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A slight random gain and offset per item and channel."""
    shape = (len(pixels), *[1] * (pixels.ndim - 2), 3)
    gain, offset = rng.normal(1, 0.05, shape).astype(np.float32), rng.normal(0, 6, shape).astype(np.float32)
    return np.clip(pixels * gain + offset, 0, 255).astype(np.uint8)
