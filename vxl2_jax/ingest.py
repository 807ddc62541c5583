"""Watch a video: frames → visual tokens → pre-filling → memory. Extend a memory by further frames."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import KVCache
from vxl2_jax import hardware, offload, planning, prefill
from vxl2_jax import memory as memories
from vxl2_jax.cache.pooling import check_compression, sparse_level
from vxl2_jax.encode import layout_of, visual_tokens
from vxl2_jax.errors import RequestError
from vxl2_jax.files import check_output, check_path
from vxl2_jax.frames import Frames, FrameSource, Seconds, check_frames, end_of, open_source
from vxl2_jax.layout import Layout
from vxl2_jax.memory import ResumeState, VideoMemory
from vxl2_jax.models import quantised
from vxl2_jax.options import AUTO, HOST, WatchOptions
from vxl2_jax.prefill import DenseCache, PrefillShape
from vxl2_jax.runtime import Runtime
from vxl2_jax.storage.host_level import HostLevel
from vxl2_jax.storage.memory_file import CacheShape
from vxl2_jax.storage.memory_writer import MemoryFileWriter, restore_streams
from vxl2_jax.tensor_parallel import cache_sharding, device_bytes, mesh_of
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
    callbacks: Callbacks = Callbacks(),
) -> VideoMemory:
    """Watch a video; see `api.Model.watch`."""
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
        return _watch(model, source, options, out, callbacks)
    finally:
        source.stop()


def _watch(
    model: Runtime, source: FrameSource, options: WatchOptions, out: Path | None, callbacks: Callbacks
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
    if out is not None and Path(out).exists():
        return _load_same(out, identity, source.hash())
    place = _choose_place(model, layout, len(source.seconds), compression, dtype, options.dense_level)
    with ExitStack() as stack:
        writer = None
        if out is not None:
            writer = stack.enter_context(closing(MemoryFileWriter(out, identity, shape, stride=model.sizes.stride)))
        sizes = prefill.shape_for(layout, model.sizes.stride, dtype=dtype)
        first = writer.groups if writer else 0
        with timed(callbacks.timings, "read"):
            stored = writer.stored_level() if writer and first else None
            level: DenseCache | HostLevel
            if place == HOST:
                level = HostLevel.empty(layout, shape, sizes)
                if stored:
                    level.restore(stored)
            else:
                level = prefill.empty(config, sizes, dtype, cache_sharding(model.params))
                level = restore_streams(level, stored) if stored else level
        first_frame = first * config.frames_per_group
        level, resume = _watch_strides(
            model,
            level,
            prefill.plan_strides(layout, rule, ids, sizes, first),
            source.batches(model.sizes.stride * config.frames_per_group, first_frame),
            layout,
            callbacks,
            total=len(source.seconds),
            done=first_frame,
            writer=writer,
        )
        with timed(callbacks.timings, "prefill"):
            sparse = _sparse_level(model, level, layout, compression)
        with timed(callbacks.timings, "read"):
            read = {"video_hash": source.hash(), "distinct_frames": source.distinct, "notes": source.notes()}
        memory = VideoMemory(level, sparse, layout, rule, seconds=seconds, resume_state=resume, **scalars, **read)
        if writer:
            with timed(callbacks.timings, "write"):
                writer.finish(sparse, memory.sparse_length, memories.resume_arrays(resume), memory.facts())
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
    memory.place(model.params)
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
    per_stride = model.sizes.stride * per_group
    cuts = [0, *range(per_stride - len(resume.tokens) * per_group, len(unencoded), per_stride), len(unencoded)]
    total = memory.frames + len(frames)
    asked = HOST if isinstance(memory.dense, HostLevel) else AUTO
    place = _choose_place(model, layout, total, memory.compression, memory.dtype, asked)
    sizes = prefill.shape_for(layout, model.sizes.stride, first, dtype=memory.dtype)
    if place == HOST:
        level = HostLevel.copy_of(memory.dense, layout, sizes)
    else:
        level = _copy_with_capacity(memory.dense_on_device(), sizes)
    level, resume = _watch_strides(
        model,
        level,
        prefill.plan_strides(layout, memory.rule, ids, sizes, first),
        (unencoded[begin:end] for begin, end in pairwise(cuts)),
        layout,
        callbacks,
        known=resume.tokens,
        done=memory.frames - started,
        total=total,
    )
    with timed(callbacks.timings, "prefill"):
        sparse = _sparse_level(model, level, layout, memory.compression)
    return replace(
        memory,
        dense=level,
        sparse=sparse,
        resume_state=resume,
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
    model: Runtime,
    level: DenseCache | HostLevel,
    strides: Sequence[prefill.Stride],
    batches: Iterator[np.ndarray],
    layout: Layout,
    callbacks: Callbacks,
    *,
    total: int,
    done: int = 0,
    known: jax.Array | None = None,
    writer: MemoryFileWriter | None = None,
) -> tuple[DenseCache | HostLevel, ResumeState | None]:
    """Pre-fill the strides into `level`, which is donated, or in host memory written in place.

    Args:
      batches: the frames of each stride.
      total: frames of the whole video, of which `done` were watched before.
      known: tokens [g, V, E] of the first stride's first groups, whose frames are not in its batch.

    Returns:
      (the level, what extending the memory needs).
    """
    hardware.clear_jit_caches()  # each length of video compiles its own programs
    config, per_group = model.config, model.config.frames_per_group
    streams = level.streams if isinstance(level, HostLevel) else level
    timings, resume, kernel = callbacks.timings, None, model.kernel_for(np.dtype(streams.visual.dtype))
    with closing(prefetch(batches)) as ahead:
        for stride in strides:
            with timed(timings, "read"):
                frames = next(ahead)
            with timed(timings, "vision"):
                tokens = visual_tokens(model, frames, known).block_until_ready()
            with timed(timings, "prefill"):
                if isinstance(level, HostLevel):
                    offload.run_stride(model.params, config, level, stride, tokens, kernel)
                else:
                    level, _ = prefill.run_stride(model.params, config, level, stride, tokens, kernel=kernel)
                    jax.block_until_ready(level)
            begin = int(stride.visual_offset) // layout.visual
            if writer:
                with timed(timings, "write"):
                    writer.append(level, begin, min(begin + model.sizes.stride, layout.groups))
            done += len(frames)
            if callbacks.progress:
                callbacks.progress(done, total)
            # Of an incomplete last stride, keep the tokens of whole groups and the frames of an incomplete group.
            whole, incomplete = total // per_group - begin, total % per_group
            resume = None
            if whole < model.sizes.stride:
                resume = ResumeState(tokens[:whole], frames[len(frames) - incomplete :].copy())
            known = None
    return level, resume


def _sparse_level(model: Runtime, level: DenseCache | HostLevel, layout: Layout, compression: int) -> KVCache:
    theta = model.config.language.rope_theta
    if isinstance(level, HostLevel):
        return offload.sparse_level(level, compression, theta, cache_sharding(model.params))
    return jax.block_until_ready(sparse_level(level, layout, compression, theta))


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
        devices=mesh.size if mesh else 1,
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


def _load_same(path: str | Path, identity: dict[str, Any], video_hash: str) -> VideoMemory:
    """Load a memory file. Raises RequestError if it holds another memory."""
    memory = VideoMemory.load(path)
    # The fingerprint changes when the video is copied, its hash does not.
    same = {**memory.identity(), "fingerprint": identity["fingerprint"]}
    if json.dumps(same) != json.dumps(identity) or memory.video_hash != video_hash:
        raise RequestError(
            f"{path}: holds a memory of another video, model or settings ({memory.video or 'no name'}, "
            f"{memory.frames} frames); choose another name, or remove it"
        )
    return memory


def _copy_with_capacity(streams: DenseCache, sizes: PrefillShape) -> DenseCache:
    """Copy the streams into caches of capacity `sizes`: the old ones belong to a memory, which never changes."""

    def copied(stream: KVCache, capacity: int) -> KVCache:
        change = ((0, 0, 0), (0, 0, 0), (0, capacity - stream.slots, 0), (0, 0, 0))  # a negative number cuts
        return jax.tree.map(lambda a: jax.lax.pad(a, jnp.zeros((), a.dtype), change), stream)

    return DenseCache(copied(streams.visual, sizes.visual), copied(streams.global_, sizes.global_))
