"""A watched video and a conversation about it as arrays of fixed shape: what the training step takes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import GLOBAL, VISUAL, Layout, PrefillRule, key_ranges, question_ranges


class Batch(NamedTuple):
    """Examples of one bucket: B of them, G groups of V visual tokens each, R global rows, side S.

    frames uint8 [B, 4·G, S, S, 3]; ids int32 [B, R]: prefix, timestamps, then the conversation, padded; targets int32
    [B, R]: the next token where it is an answer's, else −1; positions int32 [B, G·V + R]; starts, stops int32
    [B, 2, G·V + R]: the key ranges of `layout.key_ranges`, empty for padding. Rows are visual ones, then global ones.
    """

    frames: np.ndarray
    ids: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    k_start: np.ndarray
    k_end: np.ndarray


def example(
    config: ModelConfig,
    frames: np.ndarray,
    layout: Layout,
    rule: PrefillRule,
    global_ids: np.ndarray,
    conversation: np.ndarray,
    targets: np.ndarray,
    *,
    groups: int,
    rows: int,
) -> Batch:
    """One example, without the batch axis, padded to `groups` and `rows`.

    frames uint8 [≤ 4·layout.groups, S, S, 3] (as in watching, the last group is filled with its last frame); global_ids
    int32 [layout.global_length]; conversation, targets int32 [Q]: the tokens after the video and what follows each. The
    conversation sees the whole video and its own past, as a question does.

    Raises RequestError where the example is larger than the bucket.
    """
    begin, count = layout.global_length, layout.global_length + len(conversation)
    if layout.groups > groups or count > rows:
        raise RequestError(f"{layout.groups} groups and {count} rows do not fit a bucket of {groups} and {rows}")
    visual = groups * layout.visual
    fill = config.frames_per_group * layout.groups - len(frames)
    shown = np.concatenate([frames, np.repeat(frames[-1:], fill, axis=0)])
    padded = np.zeros((config.frames_per_group * groups, *frames.shape[1:]), np.uint8)
    padded[: len(shown)] = shown

    ranges = np.zeros((2, 2, visual + rows), np.int32)  # starts and stops
    ranges[..., :visual] = key_ranges(layout, rule, VISUAL, 0, visual)
    ranges[..., visual : visual + begin] = key_ranges(layout, rule, GLOBAL, 0, begin)
    ranges[..., visual + begin : visual + count] = question_ranges(layout, len(conversation))

    def fixed(parts, fill):
        return np.pad(np.concatenate(parts), (0, rows - count), constant_values=fill).astype(np.int32)

    positions = np.zeros(visual + rows, np.int32)
    positions[: layout.visual_length] = layout.visual_positions()
    positions[visual : visual + count] = np.concatenate(
        [layout.global_positions(), layout.length + np.arange(len(conversation))]
    )
    return Batch(
        padded, fixed([global_ids, conversation], 0), fixed([np.full(begin, -1), targets], -1), positions, *ranges
    )


def collate(examples: list[Batch]) -> Batch:
    """Examples of one bucket as a batch."""
    return Batch(*(np.stack(parts) for parts in zip(*examples, strict=True)))
