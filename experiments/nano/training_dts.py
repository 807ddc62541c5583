"""Stage 2: DTS and projector on frozen tower features: every visual token takes its picture's direction."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from experiments.nano import training_frames, training_rows
from experiments.nano.training_vision import NAMES, NONE
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import video_xl_2

Params = Any


def tokens(params: Params, config: ModelConfig, features: jax.Array) -> jax.Array:
    """Tower features [G, 4, 49, C] → visual tokens [G, 9, E], by the model's own functions."""
    flat = rearrange(features.astype(jnp.float32), "g f n c -> (g f) n c")
    return video_xl_2.project(params, config, video_xl_2.group_maps(params, config, flat))


def init(key: jax.Array, config: ModelConfig, head: dict) -> Params:
    """DTS and projector that begin by adding up, over the four frames, what the tower's `head` reads.

    `head` is {"kernel" [C, N], "bias" [N]} on settled features, N = NAMES + 1 ≤ C / 2 classes. The first
    convolution reads time step 0 into channels N … 2N − 1 and steps 1, 2, 3 into channels 0 … N − 1; the
    second adds the former of its first step to the latter of its second. The projector turns a high score into the
    picture's direction. Attention starts small, the rest of the channels at random: training goes on from there.
    """
    params = {key_: part for key_, part in video_xl_2.init(key, config).items() if key_ in ("dts", "projector")}
    params = jax.tree.map(np.array, params)
    encoder, projector, classes = params["dts"], params["projector"], NAMES + 1
    for half in range(2):
        for part in ("spatial", "temporal"):
            encoder[f"{part}_{half}"]["out"]["kernel"] *= 0.1
        encoder[f"halve_{half}"]["kernel"] *= 0.1
    # After the raw regrouping, channel c at step t holds feature (4c + t) mod C of frame (4c + t) // C.
    width = config.vision.width
    feature = (4 * np.arange(width)[None] + np.arange(4)[:, None]) % width
    reads = head["kernel"][feature] / 4  # [step, channel, class]: the mean over frames
    early, late = np.arange(classes, 2 * classes), np.arange(classes)
    first, second = encoder["halve_0"]["kernel"][:, 1, 1], encoder["halve_1"]["kernel"][:, 1, 1]
    first[0][:, early] += reads[0]
    for tap in range(3):
        first[tap][:, late] += reads[tap + 1]
    second[1][early, late] += 1
    second[2][late, late] += 1
    encoder["halve_1"]["bias"][late] += head["bias"]
    rows = training_rows.visual_rows()
    projector["linear_in"]["kernel"] *= 0.3
    projector["linear_out"]["kernel"] *= 0.1
    projector["linear_in"]["kernel"][late, late] += 1
    projector["linear_in"]["bias"][late] -= 4.0
    projector["linear_out"]["kernel"][late] += rows * 0.15
    return params


def loss(params: Params, config: ModelConfig, features: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict]:
    """Cross-entropy of names and squared distance to their directions. labels: fp32 [G, 9, NAMES + 1], soft."""
    rows = jnp.asarray(training_rows.visual_rows())
    made = tokens(params, config, features)
    scores = 10.0 * made @ rows.T
    named = optax.softmax_cross_entropy(scores, labels).mean()
    away = jnp.square(made - labels @ rows).sum(-1).mean()
    shown = labels[..., NONE] == 0
    right = jnp.take_along_axis(labels, scores.argmax(-1)[..., None], -1)[..., 0] > 0

    def share(hit, of):
        return (hit & of).sum() / jnp.maximum(of.sum(), 1)

    # A group's name: the greatest total over its tokens. Partial groups show their picture too.
    there = labels[..., :NAMES].sum(1)
    voted = jax.nn.softmax(scores)[..., :NAMES].sum(1).argmax(-1)
    hit = jnp.take_along_axis(there, voted[:, None], -1)[:, 0] > 0
    return named + away, {
        "tokens": share(right, shown),
        "background": share(right, ~shown),
        "away": away,
        "groups": share(hit, there.sum(-1) > 0),
    }


def labels(names: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """What each pooled token should name: names [G, 4], boxes [G, 4, 4] → soft fp32 [G, 9, NAMES + 1].

    A token shows a picture when the picture covers the centre of any of its four cells in any frame.
    """
    cells = training_frames.covered(names, boxes, 6, NONE)
    cells = rearrange(cells, "g f (y py) (x px) -> g (y x) (f py px)", py=2, px=2)
    one_hot = np.zeros((*cells.shape[:2], NAMES + 1), np.float32)
    np.put_along_axis(one_hot, cells, 1.0, axis=-1)
    one_hot[..., NONE] = one_hot[..., :NONE].sum(-1) == 0
    return one_hot / one_hot.sum(-1, keepdims=True)


def windows(starts: np.ndarray) -> np.ndarray:
    """First frames of every run of four frames inside one clip (not only the groups'): int [N]."""
    runs = [np.arange(4 * a, 4 * b - 3) for a, b in zip(starts[:-1], starts[1:], strict=True)]
    return np.concatenate(runs)


def batch(
    bank: training_frames.Frames, features: np.ndarray, first: np.ndarray, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random runs of four frames, half of them back to front. features: [4·G, 49, C]."""
    places = rng.choice(first, size)[:, None] + np.arange(4)
    back = rng.random(size) < 0.5
    places[back] = places[back, ::-1]
    group, frame = np.divmod(places, 4)
    return features[places], labels(bank.names[group, frame], bank.boxes[group, frame])
