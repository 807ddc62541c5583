"""One video on one device and over the simulated devices of a mesh, in a separate process: watch, extend, ask, save, load.

    python tests/api/on_sequence.py DIR MESH WEIGHTS CACHE (quick or all)

Prints one JSON line: the largest relative differences of the caches, and whether answers and scores agree.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax.numpy as jnp
import numpy as np

import vxl2_jax as vxl2
from vxl2_jax.memory import VideoMemory

QUESTIONS = [f"is there {number}?" for number in range(16)]
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "chunk_size": 5}  # some chunks are split over devices
STRIDE, OTHER_STRIDE = 12, 28


def clip(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose timestamps have two, three, four and five digits: equal lengths would hide wrong offsets."""
    number = np.arange(frames)
    pixels = np.random.default_rng(0).integers(0, 256, (frames, 42, 42, 3), np.uint8)
    return pixels, np.where(number > 60, 10.0 * number + 0.5, number)


def stop(done: int, total: int) -> None:
    if done < total:
        raise KeyboardInterrupt


def levels(memory: VideoMemory) -> list[np.ndarray]:
    """Keys and values of both levels, in natural order and without padding."""
    layout, dense, found = memory.layout, memory.dense_on_host().streams, []
    lengths = layout.visual_length, layout.global_length, memory.sparse_length
    for cache, length in zip((*dense, memory.sparse_on_host()), lengths, strict=True):
        found += [np.asarray(part)[:, :, :length] for part in cache.dequantised(jnp.float32)]
    return found


def difference(one: VideoMemory, other: VideoMemory) -> float:
    """The largest difference of keys and values, relative to the largest of them."""
    pairs = zip(levels(one), levels(other), strict=True)
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)


def with_stride(model: Any, stride: int) -> Any:
    """The same model with shorter strides than a CPU has, so that a short video has several."""
    return replace(model, sizes=model.sizes._replace(stride=stride))


def texts(answers: Sequence[Any]) -> list[str]:
    return [answer.text for answer in answers]


def score_difference(one: Sequence[Any], other: Sequence[Any]) -> float:
    chunks = [(x, y) for a, b in zip(one, other, strict=True) for x, y in zip(a.chunks, b.chunks, strict=True)]
    return max(abs(x.score - y.score) for x, y in chunks)


def main(directory: str, mesh: str, weights: str, cache: str, extent: str) -> None:
    folder, everything = Path(directory), extent == "all"
    one, split = (with_stride(vxl2.load(folder, weights=weights, mesh=m), STRIDE) for m in (None, mesh))
    frames, seconds = clip(50 * 4 * split.groups_per_call // STRIDE // 2 + 3)
    cut = 2 * len(frames) // 3 if everything else len(frames)
    both = [model.watch((frames[:cut], seconds[:cut]), cache=cache) for model in (one, split)]
    if everything:
        both = [model.watch_more(m, frames[cut:], seconds[cut:]) for model, m in zip((one, split), both, strict=True)]
    found: dict[str, Any] = {"difference": difference(both[1], both[0]), "answers": {}, "scores": 0.0}
    asked = {"attention": {}} | ({"mass": {"relevance": "mass"}, "dense": {"top_k": None}} if everything else {})
    for name, options in asked.items():
        for count in (1, 16) if everything else (3,):
            a, b = (
                model.ask(m, QUESTIONS[:count], **OPTIONS, **options)
                for model, m in zip((one, split), both, strict=True)
            )
            found["answers"][f"{name}, {count}"] = texts(a) == texts(b)
            found["scores"] = max(found["scores"], score_difference(a, b))
    expected = texts(one.ask(both[0], QUESTIONS[:3], **OPTIONS))
    both[1].save(folder / "memory")
    stored = VideoMemory.load(folder / "memory")
    found["stored"] = [texts(model.ask(stored, QUESTIONS[:3], **OPTIONS)) for model in (split, one)] == [expected] * 2
    shards = {shard.data.shape[2] for shard in both[1].dense.streams.visual.k.addressable_shards}
    devices = split.groups_per_call // STRIDE
    found["slots_of_a_device"] = shards == {both[1].dense.streams.visual.slots // devices}
    if everything:
        more(folder, one, split, both, (frames, seconds), cache, found)
    print(json.dumps(found))


def more(
    folder: Path, one: Any, split: Any, both: list[VideoMemory], video: tuple, cache: str, found: dict[str, Any]
) -> None:
    """What the quick extent leaves out."""
    choices = [
        model.ask(m, QUESTIONS[0], choices=["yes", "no"]).choices for model, m in zip((one, split), both, strict=True)
    ]
    found["choices"] = max(abs(a.score - b.score) for a, b in zip(*choices, strict=True))
    streamed = "".join(split.stream(both[1], QUESTIONS[0], **OPTIONS))
    found["streamed"] = streamed == one.ask(both[0], QUESTIONS[0], **OPTIONS).text
    try:
        split.watch(video, cache=cache, out=folder / "whole", progress=stop)
        raise AssertionError("the video has only one call")
    except KeyboardInterrupt:
        resumed = split.watch(video, cache=cache, out=folder / "whole")
    found["resumed"] = difference(resumed, both[0])
    found["repooled"] = difference(resumed.with_compression(2), both[0].with_compression(2))
    # On disk the dense level stays where it is, and what questions read is loaded on all devices.
    stored = VideoMemory.load(folder / "whole")
    expected = [texts(one.ask(both[0], QUESTIONS[:2], **OPTIONS, top_k=k)) for k in (4, None)]
    found["on disk"] = [texts(split.ask(stored, QUESTIONS[:2], **OPTIONS, top_k=k)) for k in (4, None)] == expected
    # A memory of other strides is extended from a group at which no stride of this mesh would begin.
    cut = 2 * len(video[0]) // 3
    memory = with_stride(one, OTHER_STRIDE).watch((video[0][:cut], video[1][:cut]), cache=cache)
    extended = split.watch_more(memory, video[0][cut:], video[1][cut:])
    found["lead"] = extended.placement.lead
    found["other strides"] = difference(extended, both[0])
    on_host = one.watch((video[0][:cut], video[1][:cut]), cache=cache, dense_level="host")
    found["from the host"] = difference(split.watch_more(on_host, video[0][cut:], video[1][cut:]), both[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
