"""One clip, pre-filled under several rules: rendering and the vision half, which do not depend on the rule, run once.

Frames are given as arrays, resized as the video reader does it; there is no video file and no H.264 in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from experiments.synthetic.clips import Clip, render_frame
from vxl2_jax import Model, VideoMemory, encode, hardware, prefill
from vxl2_jax.cache.pooling import sparse_level
from vxl2_jax.layout import PrefillRule
from vxl2_jax.models.quantised import WIDE
from vxl2_jax.video.preprocess import resize_frame

RENDERED = 196
"""Side of a frame as drawn, in pixels: that of the clips nano was trained on."""


def frames_of(clip: Clip, size: int) -> np.ndarray:
    """A frame for every whole second: uint8 [seconds, size, size, 3]."""
    return np.stack([resize_frame(render_frame(clip, float(t), RENDERED), size) for t in range(int(clip.seconds))])


def visual_tokens(model: Model, frames: np.ndarray) -> list[jax.Array]:
    """Visual tokens of every stride, [stride, V, E] each."""
    hardware.clear_jit_caches()
    step = model.sizes.stride * model.config.frames_per_group
    with model.precision():
        return [encode.visual_tokens(model, frames[first : first + step]) for first in range(0, len(frames), step)]


def remember(
    model: Model,
    tokens: Sequence[jax.Array],
    seconds: np.ndarray,
    rule: PrefillRule,
    compression: int,
    cache: str = WIDE,
) -> VideoMemory:
    """The memory that `Model.watch` would make of the frames at `seconds` [F], from their visual tokens."""
    config = model.config
    starts = tuple(float(second) for second in seconds[:: config.frames_per_group])
    layout, ids = encode.layout_of(model, starts)
    dtype = model.cache_dtype(cache)
    sizes = prefill.shape_for(layout, model.sizes.stride, dtype=dtype)
    streams, kernel = prefill.empty(config, sizes, dtype), model.kernel_for(dtype)
    with model.precision():
        for stride, part in zip(prefill.plan_strides(layout, rule, ids, sizes), tokens, strict=True):
            streams, _ = prefill.run_stride(model.params, config, streams, stride, part, kernel=kernel)
        sparse = sparse_level(streams, layout, compression, config.language.rope_theta)
    jax.block_until_ready((streams, sparse))
    return VideoMemory(
        streams,
        sparse,
        layout,
        rule,
        compression=compression,
        seconds=starts,
        frames=len(seconds),
        end_s=float(seconds[-1] + 1),
        last_s=float(seconds[-1]),
        rope_theta=config.language.rope_theta,
        model=model.fingerprint,
        generated=True,
    )


def interior(memory: VideoMemory, share: float, chunk_size: int) -> int:
    """How many chunks besides first and last may be dense for `share` percent of the dense memory's bytes.

    0 where not even those two fit.
    """
    layout = memory.layout
    saved = layout.visual - layout.visual // memory.compression  # by a group that is pooled
    ends = min(layout.groups, chunk_size + (layout.groups - 1) % chunk_size + 1)
    spare = share / 100 * layout.length - memory.sparse_length - ends * saved
    return max(int(spare // (chunk_size * saved)), 0)
