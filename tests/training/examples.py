"""Toy samples for training, and a reference for their loss."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import toys

from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.models import qwen2, video_xl_2
from vxl2_jax.training import collate

# Two layers: the definition is compiled layer by layer.
CONFIG = replace(
    toys.CONFIG,
    vision=replace(toys.CONFIG.vision, layers=1),
    language=replace(toys.CONFIG.language, layers=2),
)
RULE = PrefillRule(block_size=1, prev_blocks=1)
LAYOUTS = (Layout(5, (3, 2, 4, 3, 2), 4), Layout(5, (2, 2, 3), 4))


def draw(number: int, config=CONFIG, layout: Layout | None = None):
    """frames, layout, global ids, conversation, targets of sample `number`; its last group may lack frames."""
    rng = np.random.default_rng(number)
    layout = layout or LAYOUTS[number % len(LAYOUTS)]
    side, words = config.vision.image_size, config.language.vocabulary
    frames = rng.integers(0, 256, (4 * layout.groups - number % 3, side, side, 3), np.uint8)
    conversation = rng.integers(0, words, 9).astype(np.int32)
    targets = np.where(np.arange(9) < 4 + number % 3, -1, np.roll(conversation, -1)).astype(np.int32)
    return frames, layout, rng.integers(0, words, layout.global_length).astype(np.int32), conversation, targets


def batch(count: int = 2, groups: int = 6, rows: int = 32, config=CONFIG) -> collate.Batch:
    made = []
    for number in range(count):
        frames, layout, *ids = draw(number, config)
        made.append(collate.build_sample(config, frames, layout, RULE, *ids, groups=groups, rows=rows))
    return collate.collate(made)


def plain_loss(params, count: int = 2, config=CONFIG) -> jax.Array:
    """One video at a time, all tokens in natural order under a boolean mask."""
    total, tokens = 0.0, 0
    for number in range(count):
        frames, layout, ids, conversation, targets = draw(number, config)
        padded = np.concatenate([frames, np.repeat(frames[-1:], -len(frames) % 4, axis=0)])
        visual = video_xl_2.encode_frames(params, config, jnp.asarray(padded))
        table = params["language"]["embed"]
        x = jnp.zeros((layout.length, config.language.width))
        x = (
            x.at[layout.visual_positions()]
            .set(visual.reshape(-1, x.shape[1]))
            .at[layout.global_positions()]
            .set(table[ids])
        )
        clip = toys.Video(layout, ids, None)
        mask = toys.mask_of(clip, RULE, len(conversation))
        x, _ = toys.whole_pass(toys.Toy(config, params), jnp.concatenate([x, table[conversation]]), mask)
        scores = qwen2.logits(params["language"], config.language, x[layout.length :])
        each = optax.softmax_cross_entropy_with_integer_labels(scores, np.maximum(targets, 0))
        total, tokens = total + (each * (targets >= 0)).sum(), tokens + int((targets >= 0).sum())
    return total / tokens
