"""Watches one length, or pre-fills one case, in this process alone: times by stage, peak memory (see bench_watch.py).

JSON requests on standard input, the first with a "task" of TASKS; JSON lines on standard output.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments.bench import alike, resident
from experiments.bench.process import asked, say

PROGRESS_S = 5.0
"""Seconds between lines that say how far a run has come."""


def describe(request: dict, _: Iterable[dict]) -> None:
    """What machine this is and, of an accelerator, what it can do at best."""
    import jax

    from experiments.bench import ceilings, machine

    device = jax.devices()[0]
    large = machine.is_accelerator(device)
    top = ceilings.take(device, "bfloat16", 7, request["seed"]).as_json() if large else None
    # What is measured here is compiled on every machine, on a CPU too.
    about = {**machine.describe(device), "timings": "measured", "cores": alike.confine(None)}
    about["load"] = os.getloadavg()[0]
    say(machine=about, ceilings=top, accelerator=large)


def watch(request: dict, _: Iterable[dict]) -> None:
    """Watch the same frames several times; the first time compiles. A line of the plan, then one per run."""
    model, video = load(request)
    config, sizes = model.config, model.sizes
    usage = Usage()
    loaded = usage.start()
    for number in range(1 + request["samples"]):
        say(run=watched(model, video, "first run" if not number else f"run {number + 1}", usage))
        if not number:
            from vxl2_jax import planning
            from vxl2_jax.encode import layout_of
            from vxl2_jax.layout import PrefillRule

            layout, _ = layout_of(model, tuple(float(s) for s in range(0, len(video), config.frames_per_group)))
            found = planning.plan(
                config,
                layout,
                PrefillRule(),
                question_tokens=0,
                itemsize=model.dtype.itemsize,
                sizes=sizes,
                kernel=model.kernel,
            )
            of_watching = [found.phases[name] for name in ("vision", "pre-fill", "pooling")]
            planned = max(sum(phase.values()) - phase["weights"] for phase in of_watching)
            say(
                tokens=layout.length,
                attention=model.kernel_reason,
                dtype=str(model.dtype),
                flops=found.flops,
                pairs_kept=found.attention_pairs_kept,
                pairs_causal=found.attention_pairs_causal,
                planned_bytes=planned,
                loaded_bytes=loaded,
                memory=usage.what,
            )


def load(request: dict) -> tuple[Any, np.ndarray]:
    """The model, and uint8 frames [F, image, image, 3]."""
    frames, rng = request["frames"], np.random.default_rng(request["seed"])
    if request["model"] == "real":
        from experiments.bench import random_model
        from vxl2_jax.config import video_xl_2

        model = random_model.draw(video_xl_2(), dtype="bfloat16", seed=request["seed"])
        side = model.config.vision.image_size
        return model, rng.integers(0, 256, (frames, side, side, 3), np.uint8)
    import vxl2_jax as vxl2

    model = vxl2.load("nano")
    side = model.config.vision.image_size
    # One frame in memory, shown again and again: the frames' own bytes would hide what watching takes.
    return model, np.broadcast_to(rng.integers(0, 256, (side, side, 3), np.uint8), (frames, side, side, 3))


class Usage:
    """Bytes in use and their peak: of the accelerator's memory, or resident where there is none."""

    def __init__(self) -> None:
        import jax

        self._device = jax.devices()[0]
        self._stats = self._device.memory_stats() if self._device.platform != "cpu" else None
        self.what = "device memory" if self._stats else "resident memory"

    def start(self) -> int:
        """Bytes in use now. Resident peaks are counted anew from here; those of a device only ever grow."""
        return self._device.memory_stats()["bytes_in_use"] if self._stats else resident.settle()

    def peak(self) -> int:
        return self._device.memory_stats()["peak_bytes_in_use"] if self._stats else resident.peak()


def watched(model: Any, video: np.ndarray, name: str, usage: Usage) -> dict:
    """One run: seconds, in all and by the library's own stages; bytes before, at the peak, and of what remains.

    sparse_s: after the last stride, when only the sparse level is made; the library counts it to pre-filling.
    """
    import jax

    before, marks, timings = usage.start(), [time.perf_counter()], {}
    told = marks[0]

    def progress(done: int, total: int) -> None:
        nonlocal told
        marks.append(time.perf_counter())
        if marks[-1] - told > PROGRESS_S:
            told = marks[-1]
            say(progress=f"{name}: {done} of {total} frames")

    memory = model.watch((video, np.arange(len(video))), progress=progress, timings=timings)
    end = time.perf_counter()
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves((memory.dense, memory.sparse)))
    return {
        "timings": timings,
        "sparse_s": end - marks[-1],
        "total_s": end - marks[0],
        "before_bytes": before,
        "peak_bytes": usage.peak(),
        "cache_bytes": cache,
    }


def prefill(request: dict, again: Iterable[dict]) -> None:
    """Pre-fill the visual tokens of a case by strides, as watching does (see torch_prefill.py, which is the other).

    again: each asks for one more run.
    """
    threads = alike.confine(request["threads"])
    import jax

    import vxl2_jax as vxl2
    from vxl2_jax import prefill
    from vxl2_jax.layout import Layout, PrefillRule

    model, case = vxl2.load("nano", "float32"), np.load(request["case"])
    stride = model.sizes.stride
    layout = Layout(int(case["prefix"]), tuple(case["stamps"].tolist()), case["visual"].shape[1])
    visual = np.pad(case["visual"], ((0, -layout.groups % stride), (0, 0), (0, 0)))
    sizes = prefill.shape_for(layout, stride)
    strides = prefill.plan_strides(layout, PrefillRule(), case["ids"], sizes)

    def make():
        return prefill.empty(model.config, sizes, model.dtype)

    def feed(streams: Any, number: int) -> Any:
        tokens = visual[number * stride : (number + 1) * stride]
        return prefill.run_stride(model.params, model.config, streams, strides[number], tokens, kernel=model.kernel)[0]

    def once() -> Any:
        streams = make()
        for number in range(len(strides)):
            streams = jax.block_until_ready(feed(streams, number))
        return streams

    with jax.default_matmul_precision("highest"):
        jax.block_until_ready(feed(make(), 0))  # compiles, and runs once
        streams = alike.measure(once, again, threads=threads, about=f"jax {jax.__version__}")
    places = (layout.visual_positions(), layout.global_positions())
    cache = np.zeros((2, *streams.visual.k.shape[:2], layout.length, streams.visual.k.shape[-1]), np.float32)
    for stream, place in zip(streams, places, strict=True):
        for part, rows in enumerate(stream):
            cache[part][:, :, place] = np.asarray(rows)[:, :, : len(place)]
    np.save(request["out"], cache[:, :, :, alike.sampled(layout.length)])


TASKS = {"describe": describe, "watch": watch, "prefill": prefill}


if __name__ == "__main__":
    requests = asked()
    first = next(requests)
    TASKS[first["task"]](first, requests)
