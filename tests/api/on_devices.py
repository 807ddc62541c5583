"""One model on one device and split over several simulated ones, in a separate process: watch, extend, ask, save, load.

    python tests/api/on_devices.py DIR WAYS WEIGHTS CACHE (quick or all)

Prints one JSON line: the largest relative difference of the caches, and whether answers and scores agree.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np

import vxl2_jax as vxl2
from vxl2_jax.memory import VideoMemory

QUESTIONS = [f"is there {number}?" for number in range(16)]


def noise(frames: int) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 256, (frames, 42, 42, 3), np.uint8)
    return pixels, np.arange(frames, dtype=float)


def stop(done: int, total: int) -> None:
    if done < total:
        raise KeyboardInterrupt


@contextmanager
def single_caches(heads: int) -> Iterator[set[tuple[int, ...]]]:
    """The shapes of caches of all heads that are given to `device_put`, or are made meanwhile, for one device only."""
    found: set[tuple[int, ...]] = set()
    kept = jax.live_arrays()
    known, original = {id(array) for array in kept}, jax.device_put

    def looking(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        for array in jax.live_arrays():
            new, whole = id(array) not in known, array.ndim == 4 and array.shape[1] == heads
            if new and whole and len(array.sharding.device_set) == 1:
                found.add(array.shape)
        return result

    jax.device_put = looking
    try:
        yield found
    finally:
        jax.device_put = original


def addresses(memory: VideoMemory) -> list[int]:
    """Where the shards of the sparse level's keys are."""
    return [shard.data.unsafe_buffer_pointer() for shard in memory.sparse.k.addressable_shards]


def difference(one: VideoMemory, other: VideoMemory) -> float:
    """The largest difference of keys and values, relative to the largest of them."""
    found = 0.0
    for a, b in zip((*one.resident().dense, one.sparse), (*other.resident().dense, other.sparse), strict=True):
        for x, y in zip(a.dequantised(jnp.float32), b.dequantised(jnp.float32), strict=True):
            x, y = np.asarray(x), np.asarray(y)
            found = max(found, float(np.abs(x - y).max() / np.abs(y).max()))
    return found


def main(directory: str, ways: str, weights: str, cache: str, extent: str) -> None:
    folder, everything = Path(directory), extent == "all"
    frames, seconds = noise(170)  # two strides
    one, split = (vxl2.load(folder, weights=weights, mesh=mesh) for mesh in (None, f"model={ways}"))
    memories = [model.watch((frames[:90], seconds[:90]), cache=cache) for model in (one, split)]
    memories = [
        model.watch_more(memory, frames[90:], seconds[90:])
        for model, memory in zip((one, split), memories, strict=True)
    ]
    answers, scores = {}, {}
    scorers = {"attention": {}} | ({"mass": {"relevance": "mass"}, "dense": {"top_k": None}} if everything else {})
    for name, options in scorers.items():
        for count in (1, 16) if everything else (4,):
            found = [
                model.ask(memory, QUESTIONS[:count], max_new_tokens=6, chunk_size=4, **options)
                for model, memory in zip((one, split), memories, strict=True)
            ]
            answers[f"{name}, {count}"] = [[a.text for a in each] for each in found]
            scores[f"{name}, {count}"] = max(
                abs(x.score - y.score)
                for a, b in zip(*found, strict=True)
                for x, y in zip(a.chunks, b.chunks, strict=True)
            )
    first = next(answers[name][0] for name in answers if name in ("attention, 4", "attention, 16"))
    choices = [
        [c.score for c in model.ask(memory, QUESTIONS[0], choices=["yes", "no"]).choices] if everything else [0.0]
        for model, memory in zip((one, split), memories, strict=True)
    ]
    streamed = "".join(split.stream(memories[1], QUESTIONS[0], max_new_tokens=6, chunk_size=4))
    try:  # interrupted after the first stride, and watched on with the dense level in host memory
        split.watch((frames, seconds), cache=cache, out=folder / "whole", progress=stop)
    except KeyboardInterrupt:
        resumed = split.watch((frames, seconds), cache=cache, out=folder / "whole", dense_level="host")
    memories[1].save(folder / "memory")
    stored = VideoMemory.load(folder / "memory")
    with single_caches(one.config.language.kv_heads) as alone:
        moved = [split.ask(stored, QUESTIONS[:3], max_new_tokens=6, chunk_size=4)]
        placed = addresses(stored)
        dense = stored.resident().dense
        split.ask(stored, QUESTIONS[:3], max_new_tokens=6, chunk_size=4)
    once = addresses(stored) == placed and len(placed) == int(ways)
    moved.append(one.ask(stored, QUESTIONS[:3], max_new_tokens=6, chunk_size=4))
    caches = (memories[1].dense.visual.k, dense.visual.k)
    shards = {tuple(s.data.shape) for cache in caches for s in cache.addressable_shards}
    print(
        json.dumps(
            {
                "difference": difference(memories[1], memories[0]),
                "answers": {name: a == b for name, (a, b) in answers.items()},
                "scores": max(scores.values()),
                "choices": max(abs(a - b) for a, b in zip(*choices, strict=True)),
                "streamed": streamed == first[0],
                "resumed": difference(resumed, memories[0]),
                "stored": [[a.text for a in each] for each in moved] == [first[:3]] * 2,
                "heads_of_a_share": sorted({shape[1] for shape in shards}),
                "placed_once": once,
                "caches_on_one_device": len(alone),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
