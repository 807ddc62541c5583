"""What the language model is fed with: frames encoded to visual tokens, timestamps to token ids."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vxl2_jax.errors import TooLongError
from vxl2_jax.layout import Layout
from vxl2_jax.models import video_xl_2
from vxl2_jax.models.rope import MAX_POSITIONS
from vxl2_jax.runtime import Runtime
from vxl2_jax.tensor_parallel import Program, mesh_of, shape_of
from vxl2_jax.text import prompt
from vxl2_jax.text.prompt import MAX_QUESTION_TOKENS

encode_groups = Program(video_xl_2.encode_frames, ("config", "groups_at_once", "kernel"), sharded_argnames=("frames",))
"""On several devices each encodes a part of the groups."""


def layout_of(model: Runtime, starts: Sequence[float]) -> tuple[Layout, Int[np.ndarray, " global"]]:
    """The layout of a video and the token ids of its global stream.

    Args:
      starts: [G], the time at which each group starts, in seconds.

    Returns:
      (layout, int32 ids of the global stream: prefix and all timestamps).

    Raises:
      TooLongError: positions, those of a question included, would pass MAX_POSITIONS.
    """
    prefix = model.tokenizer.encode(prompt.prefix_text())
    timestamps = [model.tokenizer.encode(prompt.timestamp_text(s)) for s in starts]
    layout = Layout(len(prefix), tuple(map(len, timestamps)), model.config.visual_tokens)
    most_tokens = MAX_POSITIONS - MAX_QUESTION_TOKENS
    if layout.length > most_tokens:
        per_group = layout.visual + max(layout.timestamp_lengths)
        fitting = (most_tokens - layout.prefix) // per_group * model.config.frames_per_group
        raise TooLongError(
            f"{len(starts)} groups of {model.config.frames_per_group} frames are {layout.length:,} tokens, of at most {most_tokens:,}: "
            f"give --max-frames {fitting} or a lower --fps"
        )
    return layout, np.asarray(prefix + [token for tokens in timestamps for token in tokens], np.int32)


def visual_tokens(
    model: Runtime, frames: UInt8[np.ndarray, "F px px 3"], known: Float[Array, "g V E"] | None = None
) -> Float[Array, "stride V E"]:
    """Encode the frames of up to one stride; of a sharded video, of up to one stride of every device.

    A last group that lacks frames is filled with copies of its last frame (the original copies features instead).

    Args:
      frames: frames of px x px pixels.
      known: tokens of the stride's first g groups, whose frames are not among `frames`.

    Returns:
      Visual tokens of a whole stride; groups past the end are zeros and cost nothing.
    """
    mesh = shape_of(mesh_of(model.params))
    stride, at_once = model.groups_per_call, model.sizes.vision_groups * mesh.sequence
    batch = at_once * model.config.frames_per_group
    if known is not None:
        known = jnp.asarray(np.asarray(known))  # another mesh may have encoded them
    # Every group keeps its place in the vision batch whatever is known, so that it is rounded the same to the last bit.
    skipped = 0 if known is None else len(known) % at_once
    frames = _pad_with_copies(frames, skipped * model.config.frames_per_group, 0)
    parts = []
    for first in range(0, len(frames), batch):
        part = frames[first : first + batch]
        padded = _pad_with_copies(part, 0, batch - len(part))
        part = encode_groups(
            model.params, model.config, padded, groups_at_once=at_once // mesh.devices, kernel=model.kernel
        )
        parts.append(part if model.sizes.overlaps_calls else part.block_until_ready())
    tokens = jnp.concatenate(parts)[skipped:]
    if known is not None:
        tokens = jnp.concatenate([known.astype(tokens.dtype), tokens])
    return jnp.pad(tokens, [(0, stride - len(tokens)), (0, 0), (0, 0)])


def _pad_with_copies(frames: np.ndarray, before: int, after: int) -> np.ndarray:
    """Pad with copies of the first and the last frame. No copy is made if none is needed: a stride is 113 MB."""
    return np.pad(frames, [(before, after), (0, 0), (0, 0), (0, 0)], "edge") if before or after else frames
