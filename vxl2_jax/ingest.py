"""Watch a video: frames → visual tokens → pre-filling → memory. Extend a memory by further frames."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vxl2_jax import hardware, planning
from vxl2_jax import memory as memories
from vxl2_jax.cache.pooling import check_compression
from vxl2_jax.encode import layout_of, visual_tokens
from vxl2_jax.errors import BusyError, RequestError
from vxl2_jax.files import check_output, check_path
from vxl2_jax.filling import way
from vxl2_jax.frames import Frames, FrameSource, Seconds, check_frames, end_of, open_source
from vxl2_jax.hosts import on_every_host
from vxl2_jax.layout import Layout
from vxl2_jax.memory import ResumeState, VideoMemory
from vxl2_jax.models import quantised
from vxl2_jax.options import AUTO, HOST, WatchOptions
from vxl2_jax.runtime import Runtime
from vxl2_jax.storage import catalogue
from vxl2_jax.storage.host_level import HostLevel
from vxl2_jax.storage.memory_file import CacheShape
from vxl2_jax.storage.memory_writer import FollowingWriter, MemoryFileWriter, open_writer
from vxl2_jax.storage.shared import SharedFolder
from vxl2_jax.tensor_parallel import device_bytes, mesh_of, shape_of
from vxl2_jax.timing import timed
from vxl2_jax.video.ahead import prefetch


@dataclass(frozen=True)
class Callbacks:
    """progress: called with (frames done, total frames); timings: receives seconds per stage."""

    progress: Callable[[int, int], Any] | None = None
    timings: dict[str, float] | None = None


def watch(
    model: Runtime,
    video: str | Path | Frames | FrameSource,
    options: WatchOptions = WatchOptions(),
    *,
    out: str | Path | None = None,
    memories: Path | SharedFolder | None = None,
    callbacks: Callbacks = Callbacks(),
) -> VideoMemory:
    """Watch a video; see `api.Model.watch`. memories: in place of `out`, a folder in which the file is named by its identity."""
    options.check()
    if out is not None:
        out = check_path(out, "out")
        check_output(out)
    config = model.config
    check_compression(options.compression, config.visual_tokens)
    with timed(callbacks.timings, "read"):
        source = (
            video if isinstance(video, FrameSource) else open_source(video, config.vision.image_size, options.sampling)
        )
    try:
        return _watch(model, source, options, out, memories, callbacks)
    finally:
        source.stop()


def _watch(
    model: Runtime,
    source: FrameSource,
    options: WatchOptions,
    out: Path | None,
    folder: Path | SharedFolder | None,
    callbacks: Callbacks,
) -> VideoMemory:
    config, rule, compression = model.config, options.rule, options.compression
    seconds = tuple(float(s) for s in source.seconds[:: config.frames_per_group])
    layout, ids = layout_of(model, seconds)
    scalars = {
        "compression": compression,
        "end_s": source.end_s,
        "last_s": float(source.seconds[-1]),
        "frames": len(source.seconds),
        "rope_theta": config.language.rope_theta,
        "model": model.fingerprint,
        "video": source.name,
        "fingerprint": source.fingerprint,
        "reading": source.reading,
        "generated": source.generated,
    }
    lm, dtype = config.language, model.cache_dtype(options.cache)
    shape = CacheShape(lm.layers, lm.kv_heads, lm.head_width, dtype.name)
    identity = memories.identity(shape, layout, rule, seconds, **scalars)
    shared, folder = (folder, folder.local) if isinstance(folder, SharedFolder) else (None, folder)
    if folder is not None and source.fingerprint:
        out = catalogue.path_in(folder, source.name, identity)
        if shared:
            with timed(callbacks.timings, "read"):
                shared.fetch(out)
    if out is not None and Path(out).exists():
        return _load_same(out, identity, source.hash(), shared)
    place = _choose_place(model, layout, len(source.seconds), compression, dtype, options.dense_level)
    with ExitStack() as stack:
        writer = None
        if out is not None:
            with nullcontext() if folder is None else suppress(BusyError):  # of a folder's, another job writes this one
                writer = open_writer(out, identity, shape, stride=model.groups_per_call)
                stack.enter_context(closing(writer))
        first = writer.groups if writer else 0
        filling = way(model, place)(model, layout, rule, ids, dtype, first)
        with timed(callbacks.timings, "read"):
            level = filling.begin(shape, writer.stored_level() if writer and first else None)
        first_frame = first * config.frames_per_group
        level, resume = _watch_strides(
            filling,
            level,
            source.batches(model.groups_per_call * config.frames_per_group, first_frame),
            callbacks,
            total=len(source.seconds),
            done=first_frame,
            writer=writer,
        )
        with timed(callbacks.timings, "prefill"):
            sparse = filling.pool(level, compression)
        with timed(callbacks.timings, "read"):
            read = {"video_hash": source.hash(), "distinct_frames": source.distinct, "notes": source.notes()}
        about = {"resume_state": resume, "placement": filling.placement, **scalars, **read}
        memory = VideoMemory(level, sparse, layout, rule, seconds=seconds, **about)
        if writer:
            with timed(callbacks.timings, "write"):
                resumable = memories.resume_arrays(resume)
                writer.finish(memory.sparse_on_host(), memory.sparse_length, resumable, memory.facts())
                if shared:
                    shared.settle(writer.path)
    return memory


def watch_more(
    model: Runtime,
    memory: VideoMemory,
    frames: Any,
    seconds: Seconds,
    callbacks: Callbacks = Callbacks(),
) -> VideoMemory:
    """Extend a memory; see `api.Model.watch_more`."""
    config, per_group = model.config, model.config.frames_per_group
    memories.check_is_memory(memory)
    if memory.model != model.fingerprint:
        raise RequestError(
            f"this memory was made by another model than {model.name}: extend it with the model that made it"
        )
    memory.place(model.params, model.sizes.stride)
    frames, seconds = check_frames(frames, seconds, config.vision.image_size)
    if seconds[0] <= memory.last_s:
        raise RequestError(
            f"new frames must come after the memory's last frame at {memory.last_s} s, not at {seconds[0]} s"
        )
    resume = memory.resume_state or ResumeState(jnp.zeros((0, config.visual_tokens, config.language.width)), frames[:0])
    whole, started = memory.frames // per_group, len(resume.frames)
    first = whole - len(resume.tokens)
    starts = memory.seconds + tuple(float(s) for s in seconds[-started % per_group :: per_group])
    layout, ids = layout_of(model, starts)
    unencoded = np.concatenate([resume.frames, frames])
    # The first stride has the tokens of some of its groups already, so it needs fewer frames.
    per_call = model.groups_per_call * per_group
    cuts = [0, *range(per_call - len(resume.tokens) * per_group, len(unencoded), per_call), len(unencoded)]
    total = memory.frames + len(frames)
    asked = HOST if isinstance(memory.dense, HostLevel) and memory.placement is None else AUTO
    place = _choose_place(model, layout, total, memory.compression, memory.dtype, asked)
    filling = way(model, place)(model, layout, memory.rule, ids, memory.dtype, first)
    level, resume = _watch_strides(
        filling,
        filling.extend(memory),
        (unencoded[begin:end] for begin, end in pairwise(cuts)),
        callbacks,
        known=resume.tokens,
        done=memory.frames - started,
        total=total,
    )
    with timed(callbacks.timings, "prefill"):
        sparse = filling.pool(level, memory.compression)
    return replace(
        memory,
        dense=level,
        sparse=sparse,
        resume_state=resume,
        placement=filling.placement,
        layout=layout,
        seconds=starts,
        last_s=float(seconds[-1]),
        end_s=end_of(seconds, memory.last_s),
        frames=total,
        video_hash="",
        fingerprint="",
        distinct_frames=0,
        generated=False,
    )


def _watch_strides(
    filling: Any,
    level: Any,
    batches: Iterator[np.ndarray],
    callbacks: Callbacks,
    *,
    total: int,
    done: int = 0,
    known: jax.Array | None = None,
    writer: MemoryFileWriter | FollowingWriter | None = None,
) -> tuple[Any, ResumeState | None]:
    """Pre-fill a video into `level`, which is donated, or in host memory written in place.

    Args:
      batches: the frames of each call.
      total: frames of the whole video, of which `done` were watched before.
      known: tokens [g, V, E] of the first call's first groups, whose frames are not in its batch.

    Returns:
      (the level, what extending the memory needs).
    """
    hardware.clear_jit_caches()  # each length of video compiles its own programs
    model, layout = filling.model, filling.layout
    per_group, per_call = model.config.frames_per_group, model.groups_per_call
    timings, resume = callbacks.timings, None
    with closing(prefetch(batches)) as ahead:
        for number, begin in enumerate(filling.begins):
            with timed(timings, "read"):
                frames = next(ahead)
            with timed(timings, "vision"):
                tokens = visual_tokens(model, frames, known).block_until_ready()
            with timed(timings, "prefill"):
                level = filling.feed(level, number, tokens)
            if writer:
                with timed(timings, "write"):
                    writer.append(level, begin, min(begin + per_call, layout.groups))
            done += len(frames)
            if callbacks.progress:
                callbacks.progress(done, total)
            # Of an incomplete last call, keep the tokens of whole groups and the frames of an incomplete group.
            whole, incomplete = total // per_group - begin, total % per_group
            resume = None
            if whole < per_call:
                resume = ResumeState(on_every_host(tokens[:whole]), frames[len(frames) - incomplete :].copy())
            known = None
    return level, resume


def _choose_place(
    model: Runtime, layout: Layout, frames: int, compression: int, cache_dtype: np.dtype, asked: str
) -> str:
    """Where the dense level of a memory will be: DEVICE or HOST.

    Raises TooLongError if watching a video of this layout, or a question about it, would not fit.
    """
    device, mesh, weights_bytes = hardware.device(), mesh_of(model.params), device_bytes(model.params)
    place, reason = planning.choose_place(
        model.config,
        layout,
        asked,
        frames=frames,
        weights_bytes=weights_bytes,
        used_bytes=hardware.used_bytes(device) or weights_bytes,
        limit_bytes=hardware.memory_bytes(device),
        free_host_bytes=None if device.platform == "cpu" else hardware.free_host_bytes(),
        compression=compression,
        itemsize=model.dtype.itemsize,
        cache=quantised.INT8 if cache_dtype == jnp.int8 else quantised.WIDE,
        weights=model.weights,
        devices=shape_of(mesh).model,
        sequence=shape_of(mesh).sequence,
        sizes=model.sizes,
        kernel=model.kernel_for(cache_dtype),
        compiler=hardware.compiler_for(device),
    )
    if reason:
        _announce(reason)
    return place


@cache
def _announce(reason: str) -> None:
    """Warn once per process, not for every video of a queue."""
    logging.getLogger("vxl2_jax").warning("%s", reason)


def _load_same(
    path: str | Path, identity: dict[str, Any], video_hash: str, shared: SharedFolder | None = None
) -> VideoMemory:
    """Load a memory file, of which the folder `shared` has one or gets it. Raises RequestError if it holds another memory."""
    if shared:
        try:
            memory = _load_same(path, identity, video_hash)
        except RequestError as error:
            Path(path).unlink(missing_ok=True)
            raise RequestError(f"{shared.url}: {error}") from error
        shared.settle(Path(path))
        return memory
    memory = VideoMemory.load(path)
    # The fingerprint changes when the video is copied, its hash does not.
    same = {**memory.identity(), "fingerprint": identity["fingerprint"]}
    if json.dumps(same) != json.dumps(identity) or memory.video_hash != video_hash:
        raise RequestError(
            f"{path}: holds a memory of another video, model or settings ({memory.video or 'no name'}, "
            f"{memory.frames} frames); choose another name, or remove it"
        )
    return memory
