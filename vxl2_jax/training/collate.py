"""A watched video and a conversation about it as arrays of fixed shape: the input of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import GLOBAL, VISUAL, Layout, PrefillRule, key_ranges, question_ranges


class Batch(NamedTuple):
    """B samples padded to one size: G groups of V visual tokens and N global rows. N' = G·V + N.

    Attributes:
      frames: uint8 [B, F, px, px, 3], F = 4·G.
      ids: int32 [B, N]: prefix, timestamps, then the conversation, padded.
      targets: int32 [B, N]: the next token where an answer is predicted, else −1.
      positions: int32 [B, N'], visual rows first.
      k_start, k_end: int32 [B, 2, N']: key ranges in both streams, see `layout.key_ranges`; empty for padding.
    """

    frames: Any
    ids: Any
    targets: Any
    positions: Any
    k_start: Any
    k_end: Any


def build_sample(
    config: ModelConfig,
    frames: UInt8[np.ndarray, "F px px 3"],
    layout: Layout,
    rule: PrefillRule,
    global_ids: Int[np.ndarray, " _"],
    conversation: Int[np.ndarray, " N"],
    targets: Int[np.ndarray, " N"],
    *,
    groups: int,
    rows: int,
) -> Batch:
    """One sample, without the batch axis, padded to `groups` groups and `rows` global rows.

    The conversation attends to the whole video and its own past, as a question does.

    Args:
      frames: up to 4·layout.groups; as in watching, the last frame fills up the last group.
      global_ids: the prefix and all timestamps.
      conversation: the tokens after the video.
      targets: the next token of each, or −1.

    Raises:
      RequestError: the sample is larger than the padded size.
    """
    begin, count = layout.global_length, layout.global_length + len(conversation)
    if layout.groups > groups or count > rows:
        raise RequestError(f"{layout.groups} groups and {count} rows do not fit a sample of {groups} and {rows}")
    visual = groups * layout.visual
    missing = config.frames_per_group * layout.groups - len(frames)
    padded_frames = np.zeros((config.frames_per_group * groups, *frames.shape[1:]), np.uint8)
    padded_frames[: len(frames)] = frames
    padded_frames[len(frames) : len(frames) + missing] = frames[-1]

    ranges = np.zeros((2, 2, visual + rows), np.int32)  # k_start and k_end
    ranges[..., :visual] = key_ranges(layout, rule, VISUAL, 0, visual)
    ranges[..., visual : visual + begin] = key_ranges(layout, rule, GLOBAL, 0, begin)
    ranges[..., visual + begin : visual + count] = question_ranges(layout, len(conversation))

    positions = np.zeros(visual + rows, np.int32)
    positions[: layout.visual_length] = layout.visual_positions()
    positions[visual : visual + begin] = layout.global_positions()
    positions[visual + begin : visual + count] = layout.question_positions(len(conversation))

    ids = np.zeros(rows, np.int32)
    ids[:begin], ids[begin:count] = global_ids, conversation
    padded_targets = np.full(rows, -1, np.int32)
    padded_targets[begin:count] = targets
    return Batch(padded_frames, ids, padded_targets, positions, *ranges)


def padding_sample(config: ModelConfig, *, groups: int, rows: int) -> Batch:
    """A sample without frames, tokens and targets: it has no weight in the loss."""
    side, total = config.vision.image_size, groups * config.visual_tokens + rows
    frames = np.zeros((groups * config.frames_per_group, side, side, 3), np.uint8)
    ids, ranges = np.zeros(rows, np.int32), np.zeros((2, total), np.int32)
    return Batch(frames, ids, np.full(rows, -1, np.int32), np.zeros(total, np.int32), ranges, ranges)


def collate(samples: Sequence[Batch]) -> Batch:
    """Samples of one padded size as a batch."""
    return Batch(*(np.stack(arrays) for arrays in zip(*samples, strict=True)))
