"""Watching a video, step by step: frames → visual tokens → pre-fill → memory; and going on with a memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import KVCache
from vxl2_jax import hardware, planning, prefill
from vxl2_jax import memory as memories
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.memory import ResumeState, VideoMemory, check_compression, sparse_level
from vxl2_jax.models import video_xl_2
from vxl2_jax.prefill import CacheCapacity, DenseCache
from vxl2_jax.runtime import Runtime
from vxl2_jax.storage.memory_file import CacheShape
from vxl2_jax.storage.memory_writer import MemoryFileWriter, restore_streams
from vxl2_jax.text import prompt
from vxl2_jax.timing import timed
from vxl2_jax.video.reader import content_hash, open_video, prefetch

Frames = tuple[np.ndarray, Sequence[float]]
SAMPLING = ("fps", "max_frames", "max_fps")
"""Options of `watch` by which frames are chosen."""
_encode = jax.jit(video_xl_2.encode_frames, static_argnames=("config", "groups_at_once", "kernel"))


class FrameSource(NamedTuple):
    """Frames to be watched. seconds [F]: of each; batches: (how many at a time, first frame) → arrays of them;
    end_s: the second at which the last one ends; name, hash: of the file, empty where there is none."""

    seconds: np.ndarray
    batches: Callable[[int, int], Iterator[np.ndarray]]
    end_s: float
    name: str = ""
    hash: str = ""


@dataclass(frozen=True)
class Callbacks:
    """Who is told what: progress (frames done, frames in all), and seconds per stage."""

    progress: Callable[[int, int], None] | None = None
    timings: dict[str, float] | None = None


def watch(
    model: Runtime,
    video: str | Path | Frames | FrameSource,
    *,
    sampling: Mapping[str, float | int | None],
    rule: PrefillRule,
    compression: int,
    out: str | Path | None,
    report: Callbacks,
) -> VideoMemory:
    """See `api.Model.watch`."""
    if rule.block_size < 1 or (rule.prev_blocks is not None and rule.prev_blocks < 0):
        raise RequestError(
            "block_size must be at least 1 and prev_blocks at least 0 (or none), "
            f"not {rule.block_size} and {rule.prev_blocks}"
        )
    config = model.config
    check_compression(compression, config.visual_tokens)
    with timed(report.timings, "read"):
        source = video if isinstance(video, FrameSource) else open_source(video, config.vision.image_size, sampling)
    seconds = tuple(float(s) for s in source.seconds[:: config.frames_per_group])
    layout, ids = layout_of(model, seconds)
    known = {
        "compression": compression,
        "end_s": source.end_s,
        "last_s": float(source.seconds[-1]),
        "frames": len(source.seconds),
        "rope_theta": config.language.rope_theta,
        "model": model.fingerprint,
        "video": source.name,
        "video_hash": source.hash,
    }
    shape = CacheShape(config.language.layers, config.language.kv_heads, config.language.head_width, model.dtype.name)
    identity = memories.identity(shape, layout, rule, seconds, **known)
    if out is not None and Path(out).exists():
        return _same_memory(out, identity)
    _check_fits(model, layout, len(source.seconds), compression)
    with ExitStack() as stack:
        writer = None
        if out is not None:
            writer = stack.enter_context(closing(MemoryFileWriter(out, identity, shape, stride=model.sizes.stride)))
        sizes = prefill.capacity(layout, model.sizes.stride)
        streams, first = prefill.empty(config, sizes, model.dtype), 0
        if writer and writer.groups:
            with timed(report.timings, "read"):
                streams, first = restore_streams(streams, writer.stored_level()), writer.groups
        strides = prefill.plan_strides(layout, rule, ids, sizes, first)
        first_frame = first * config.frames_per_group
        batches = source.batches(model.sizes.stride * config.frames_per_group, first_frame)
        streams, opened = _watch_strides(
            model,
            streams,
            strides,
            batches,
            layout,
            report,
            frames=len(source.seconds),
            done=first_frame,
            writer=writer,
        )
        with timed(report.timings, "prefill"):
            sparse = jax.block_until_ready(sparse_level(streams, layout, compression, config.language.rope_theta))
        memory = VideoMemory(streams, sparse, layout, rule, seconds=seconds, open=opened, **known)
        if writer:
            with timed(report.timings, "write"):
                writer.finish(sparse, memory.sparse_length, memories.resume_arrays(opened))
    return memory


def watch_more(
    model: Runtime, memory: VideoMemory, frames: np.ndarray, seconds: Sequence[float], report: Callbacks
) -> VideoMemory:
    """See `api.Model.watch_more`."""
    config, per_group = model.config, model.config.frames_per_group
    if memory.model != model.fingerprint:
        raise RequestError(
            f"this memory was made by another model than {model.name}: extend it with the one that made it"
        )
    frames, seconds = _checked(frames, seconds, config.vision.image_size)
    if seconds[0] <= memory.last_s:
        raise RequestError(
            f"frames to watch more must come after the memory's last one at {memory.last_s} s, not at {seconds[0]} s"
        )
    memory = memory.resident()
    opened = memory.open or ResumeState(jnp.zeros((0, config.visual_tokens, config.language.width)), frames[:0])
    whole, started = memory.frames // per_group, len(opened.frames)
    first = whole - len(opened.tokens)
    starts = memory.seconds + tuple(float(s) for s in seconds[-started % per_group :: per_group])
    layout, ids = layout_of(model, starts)
    shown = np.concatenate([opened.frames, frames])
    # The first stride knows some of its groups already, and so takes fewer frames.
    a_stride = model.sizes.stride * per_group
    cuts = [0, *range(a_stride - len(opened.tokens) * per_group, len(shown), a_stride), len(shown)]
    batches = (shown[begin:end] for begin, end in pairwise(cuts))
    _check_fits(model, layout, memory.frames + len(frames), memory.compression)
    sizes = prefill.capacity(layout, model.sizes.stride, first)
    strides = prefill.plan_strides(layout, memory.rule, ids, sizes, first)
    streams, opened = _watch_strides(
        model,
        _with_room(memory.dense, sizes),
        strides,
        batches,
        layout,
        report,
        known=opened.tokens,
        done=memory.frames - started,
        frames=memory.frames + len(frames),
    )
    with timed(report.timings, "prefill"):
        sparse = jax.block_until_ready(sparse_level(streams, layout, memory.compression, memory.rope_theta))
    return memory.replace(
        dense=streams,
        sparse=sparse,
        open=opened,
        layout=layout,
        seconds=starts,
        last_s=float(seconds[-1]),
        end_s=_end_of(seconds, memory.last_s),
        frames=memory.frames + len(frames),
        video_hash="",
    )


def _watch_strides(
    model: Runtime,
    streams: DenseCache,
    strides: Sequence[prefill.Stride],
    batches: Iterator[np.ndarray],
    layout: Layout,
    report: Callbacks,
    *,
    frames: int,
    done: int = 0,
    known: jax.Array | None = None,
    writer: MemoryFileWriter | None = None,
) -> tuple[DenseCache, ResumeState | None]:
    """The streams (given up) with all strides pre-filled, and what extending them needs.

    batches: the frames of each stride, of which the first already knows the tokens of its first groups (`known`);
    frames: how many there are in all, of which `done` were watched before.
    """
    hardware.clear_jit_caches()  # videos of many lengths, in one process, are many programs
    config, per_group = model.config, model.config.frames_per_group
    timings, opened = report.timings, None
    with closing(prefetch(batches)) as ahead:
        for stride in strides:
            with timed(timings, "read"):
                shown = next(ahead)
            with timed(timings, "vision"):
                tokens = visual_tokens(model, shown, known).block_until_ready()
            with timed(timings, "prefill"):
                streams, _ = prefill.run_stride(model.params, config, streams, stride, tokens, kernel=model.kernel)
                jax.block_until_ready(streams)
            begin = int(stride.visual_offset) // layout.visual
            if writer:
                with timed(timings, "write"):
                    writer.append(streams, begin, min(begin + model.sizes.stride, layout.groups))
            done += len(shown)
            if report.progress:
                report.progress(done, frames)
            # Whole groups keep their tokens, a group that lacks frames keeps those it has.
            whole, lacking = frames // per_group - begin, frames % per_group
            opened = (
                ResumeState(tokens[:whole], shown[len(shown) - lacking :].copy())
                if whole < model.sizes.stride
                else None
            )
            known = None
    return streams, opened


def _check_fits(model: Runtime, layout: Layout, frames: int, compression: int) -> None:
    """Raise RequestError if a memory of this layout, or a question about it, would not fit the device."""
    device, weights = jax.devices()[0], sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    planning.check_memory(
        model.config,
        layout,
        frames=frames,
        weights_bytes=weights,
        used_bytes=hardware.used_bytes(device) or weights,
        limit_bytes=hardware.memory_bytes(device),
        compression=compression,
        itemsize=model.dtype.itemsize,
        sizes=model.sizes,
        kernel=model.kernel,
    )


def _same_memory(path: str | Path, identity: dict) -> VideoMemory:
    """The memory that a file already holds, if it is the one wanted."""
    found = VideoMemory.load(path)
    if json.dumps(found.identity()) != json.dumps(identity):
        raise RequestError(
            f"{path}: holds a memory of another video, model or settings ({found.video or 'no name'}, "
            f"{found.frames} frames); choose another name, or remove it"
        )
    return found


def _with_room(streams: DenseCache, sizes: CacheCapacity) -> DenseCache:
    """A copy of the streams with the capacity `sizes`; the old ones belong to a memory, which never changes."""

    def fitted(stream: KVCache, room: int) -> KVCache:
        kept = min(stream.k.shape[2], room)

        def copied(a):
            return jnp.zeros((*a.shape[:2], room, a.shape[3]), a.dtype).at[:, :, :kept].set(a[:, :, :kept])

        return KVCache(*map(copied, stream))

    return DenseCache(fitted(streams.visual, sizes.visual), fitted(streams.global_, sizes.global_))


def open_source(video: str | Path | Frames, size: int, sampling: Mapping[str, float | int | None]) -> FrameSource:
    """The frames to be watched, `size` pixels square. Raises VideoError or RequestError as `watch` does."""
    if isinstance(video, (str, Path)):
        source = open_video(video, size=size, **sampling)
        end_s = float(max(source.duration_s, source.seconds[-1]))
        return FrameSource(np.asarray(source.seconds), source.batches, end_s, source.path.name, content_hash(video))
    frames, seconds = _checked(*video, size)

    def parts(count, first):
        return (frames[i : i + count] for i in range(first, len(frames), count))

    return FrameSource(seconds, parts, _end_of(seconds))


def _checked(frames: np.ndarray, seconds: Sequence[float], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [F, size, size, 3] and their seconds [F], or RequestError."""
    frames, seconds = np.asarray(frames), np.asarray(seconds, float)
    if frames.dtype != np.uint8 or frames.shape != (len(seconds), size, size, 3) or not len(seconds):
        raise RequestError(
            f"frames must be uint8 [{max(len(seconds), 1)}, {size}, {size}, 3], one for each of the seconds, "
            f"not {frames.dtype} {list(frames.shape)}"
        )
    if not np.isfinite(seconds).all() or np.any(np.diff(seconds) < 0):
        raise RequestError(
            "the seconds of frames must be numbers that do not decrease; sort frames and seconds by time"
        )
    return frames, seconds


def _end_of(seconds: np.ndarray, before: float | None = None) -> float:
    """When the last frame ends: it stays as long as the one before it (`before`: when the frame before all these was)."""
    seen = [before, *seconds] if before is not None else list(seconds)
    return float(seen[-1] + (seen[-1] - seen[-2] if len(seen) > 1 else 0.0))


def layout_of(model: Runtime, starts: Sequence[float]) -> tuple[Layout, np.ndarray]:
    """Layout of a video whose groups start at `starts` seconds, and the ids of its global stream."""
    prefix = model.tokenizer.encode(prompt.prefix_text())
    stamps = [model.tokenizer.encode(prompt.timestamp_text(s)) for s in starts]
    layout = Layout(len(prefix), tuple(len(stamp) for stamp in stamps), model.config.visual_tokens)
    return layout, np.asarray(prefix + [token for stamp in stamps for token in stamp], np.int32)


def visual_tokens(model: Runtime, frames: np.ndarray, known: jax.Array | None = None) -> jax.Array:
    """Frames of up to a stride [n, image, image, 3] → visual tokens [stride, V, E].

    known [g, V, E]: tokens of the stride's first groups, whose frames are not among these. A last group that lacks
    frames is filled with copies of the last one (as the original does with its features); groups past the end are
    zeros and cost nothing.
    """
    stride, at_once = model.sizes
    batch = at_once * model.config.frames_per_group
    # Every group keeps its place in the vision tower's batch, whatever is known: the same rounding to the last bit.
    skipped = 0 if known is None else len(known) % at_once
    frames = _with_copies(frames, skipped * model.config.frames_per_group, 0)
    parts, in_turn = [], jax.default_backend() == "cpu"
    for first in range(0, len(frames), batch):
        part = frames[first : first + batch]
        filled = _with_copies(part, 0, batch - len(part))
        part = _encode(model.params, model.config, filled, groups_at_once=at_once, kernel=model.kernel)
        # A CPU works on as many batches at once as it has cores, each with activations of its own: here one by one.
        parts.append(part.block_until_ready() if in_turn else part)
    tokens = jnp.concatenate(parts)[skipped:]
    if known is not None:
        tokens = jnp.concatenate([known.astype(tokens.dtype), tokens])
    return jnp.pad(tokens, [(0, stride - len(tokens)), (0, 0), (0, 0)])


def _with_copies(frames: np.ndarray, before: int, after: int) -> np.ndarray:
    """Frames with copies of the first and the last one around them. A stride of real frames is 113 MB: whole ones, which
    most are, stay where they are."""
    return np.pad(frames, [(before, after), (0, 0), (0, 0), (0, 0)], "edge") if before or after else frames
