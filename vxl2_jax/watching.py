"""Watching a video, step by step: frames → visual tokens → pre-fill → memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from vxl2_jax import prefill
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import Layout, Rule
from vxl2_jax.memory import VideoMemory, check_compression, sparse_level
from vxl2_jax.models import video_xl_2
from vxl2_jax.text import prompt
from vxl2_jax.timing import timed
from vxl2_jax.video.reader import open_video, prefetch

if TYPE_CHECKING:
    from vxl2_jax.api import Model

Frames = tuple[np.ndarray, Sequence[float]]
_encode = jax.jit(video_xl_2.encode_frames, static_argnames=("config", "groups_at_once", "kernel"))


def watch(
    model: Model,
    video: str | Path | Frames,
    *,
    sampling: dict[str, float | int | None],
    rule: Rule,
    compression: int,
    progress: Callable[[int, int], None] | None,
    timings: dict[str, float] | None,
) -> VideoMemory:
    """See `api.Model.watch`."""
    if rule.block_size < 1 or (rule.prev_blocks is not None and rule.prev_blocks < 0):
        raise RequestError(
            f"block_size must be at least 1 and prev_blocks at least 0 (or none), not {rule.block_size} and {rule.prev_blocks}"
        )
    check_compression(compression, model.config.visual_tokens)
    theta, per_group = model.config.language.rope_theta, model.config.frames_per_group
    with timed(timings, "read"):
        seconds, batches, end_s, name = _open(video, model, sampling)
    starts = tuple(float(s) for s in seconds[::per_group])
    layout, ids = layout_of(model, starts)
    sizes = prefill.capacity(layout, model.sizes.stride)
    streams = prefill.empty(model.config, sizes, model.dtype)
    done = 0
    with closing(prefetch(batches)) as ahead:
        for stride in prefill.plan(layout, rule, ids, sizes):
            with timed(timings, "read"):
                frames = next(ahead)
            with timed(timings, "vision"):
                tokens = visual_tokens(model, frames).block_until_ready()
            with timed(timings, "prefill"):
                streams, _ = prefill.run_stride(model.params, model.config, streams, stride, tokens, kernel=model.kernel)
                jax.block_until_ready(streams)
            done += len(frames)
            if progress:
                progress(done, len(seconds))
    with timed(timings, "prefill"):
        sparse = jax.block_until_ready(sparse_level(streams, layout, compression, theta))
    return VideoMemory(
        dense=streams, sparse=sparse, layout=layout, rule=rule, compression=compression, seconds=starts, end_s=end_s,
        frames=len(seconds), rope_theta=theta, model=model.fingerprint, video=name,
    )


def _open(video: str | Path | Frames, model: Model, sampling: dict) -> tuple:
    """(seconds [F], iterator of frame batches of a stride, end in seconds, file name or "")."""
    size, per_stride = model.config.vision.image_size, model.sizes.stride * model.config.frames_per_group
    if isinstance(video, (str, Path)):
        source = open_video(video, size=size, **sampling)
        seconds = np.asarray(source.seconds)
        return seconds, source.batches(per_stride), float(max(source.duration_s, seconds[-1])), source.path.name
    frames, seconds = np.asarray(video[0]), np.asarray(video[1], float)
    if frames.dtype != np.uint8 or frames.shape != (len(seconds), size, size, 3) or not len(seconds):
        raise RequestError(
            f"frames must be uint8 [{max(len(seconds), 1)}, {size}, {size}, 3], one for each of the seconds, "
            f"not {frames.dtype} {list(frames.shape)}"
        )
    step = seconds[-1] - seconds[-2] if len(seconds) > 1 else 0.0
    parts = (frames[i : i + per_stride] for i in range(0, len(frames), per_stride))
    return seconds, parts, float(seconds[-1] + step), ""


def layout_of(model: Model, starts: Sequence[float]) -> tuple[Layout, np.ndarray]:
    """Layout of a video whose groups start at `starts` seconds, and the ids of its global stream."""
    prefix = model.tokenizer.encode(prompt.prefix_text())
    stamps = [model.tokenizer.encode(prompt.timestamp_text(s)) for s in starts]
    layout = Layout(len(prefix), tuple(len(stamp) for stamp in stamps), model.config.visual_tokens)
    return layout, np.asarray(prefix + [token for stamp in stamps for token in stamp], np.int32)


def visual_tokens(model: Model, frames: np.ndarray) -> jax.Array:
    """Frames of up to a stride [n, image, image, 3] → visual tokens [stride, V, E].

    A last group that lacks frames is filled with copies of the last one (as the original does with its
    features); groups past the end are zeros and cost nothing.
    """
    stride, at_once = model.sizes
    batch = at_once * model.config.frames_per_group
    parts = []
    for first in range(0, len(frames), batch):
        part = frames[first : first + batch]
        filled = np.pad(part, [(0, batch - len(part)), (0, 0), (0, 0), (0, 0)], "edge")
        parts.append(_encode(model.params, model.config, filled, groups_at_once=at_once, kernel=model.kernel))
    tokens = jnp.concatenate(parts)
    return jnp.pad(tokens, [(0, stride - len(tokens)), (0, 0), (0, 0)])
