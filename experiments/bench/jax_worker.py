"""Tasks of a JAX process of its own: describe the machine, watch a video, pre-fill a case (see workers.py)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments.bench import workers
from experiments.bench.workers import reply, serve

_PROGRESS_S = 5.0


def describe(request: dict, _: Iterable[dict]) -> None:
    """Reply with the machine and its ceilings."""
    import jax

    from experiments.bench import machine, measure

    device = jax.devices()[0]
    accelerator = machine.is_accelerator(device)
    dtype = "bfloat16" if accelerator else "float32"
    ceilings = measure.measure_ceilings(device, dtype, 7, request["seed"])
    # Watching runs compiled programs everywhere, on a CPU, too.
    about = {**machine.describe(device), "timings": "measured"}
    reply(machine=about, ceilings=asdict(ceilings), accelerator=accelerator)


def watch(request: dict, _: Iterable[dict]) -> None:
    """Watch the same frames 1 + samples times; the first run compiles. Reply with each run and, once, with the plan."""
    from vxl2_jax import planning
    from vxl2_jax.encode import layout_of
    from vxl2_jax.layout import PrefillRule

    model, video = _load(request)
    config, memory_usage = model.config, MemoryUsage()
    loaded = memory_usage.reset()
    seconds = tuple(float(second) for second in range(0, len(video), config.frames_per_group))
    layout, _ = layout_of(model, seconds)
    dtype = {"itemsize": model.dtype.itemsize, "sizes": model.sizes, "kernel": model.kernel}
    for number in range(1 + request["samples"]):
        reply(run=watch_once(model, video, f"run {number + 1}", memory_usage))
        if number == 0:
            plan = planning.plan(config, layout, PrefillRule(), question_tokens=0, **dtype)
            phases = [plan.phases[name] for name in ("vision", "pre-fill", "pooling")]
            reply(
                tokens=layout.length,
                attention=model.kernel_reason,
                dtype=str(model.dtype),
                flops=plan.flops,
                planned_bytes=max(sum(phase.values()) - phase["weights"] for phase in phases),
                loaded_bytes=loaded,
                memory=memory_usage.what,
            )


def _load(request: dict) -> tuple[Any, np.ndarray]:
    """The model, and uint8 frames [F, image, image, 3]."""
    frames, rng = request["frames"], np.random.default_rng(request["seed"])
    if request["model"] == "real":
        from experiments.bench import problems
        from vxl2_jax.config import video_xl_2

        model = problems.random_model(video_xl_2(), dtype="bfloat16", seed=request["seed"])
        side = model.config.vision.image_size
        return model, rng.integers(0, 256, (frames, side, side, 3), np.uint8)
    import vxl2_jax as vxl2

    model = vxl2.load("nano", compile_cache=False)
    side = model.config.vision.image_size
    # A view of one frame: the bytes of all frames would hide what watching takes.
    return model, np.broadcast_to(rng.integers(0, 256, (side, side, 3), np.uint8), (frames, side, side, 3))


class MemoryUsage:
    """Bytes in use and their peak: of the accelerator's memory, or resident where there is none."""

    def __init__(self) -> None:
        import jax

        self._device = jax.devices()[0]
        self._on_device = self._device.platform != "cpu" and self._device.memory_stats() is not None
        self.what = "device memory" if self._on_device else "resident memory"

    def reset(self) -> int:
        """Bytes in use. Peaks of resident memory start again here; a device's only ever grow."""
        return self._device.memory_stats()["bytes_in_use"] if self._on_device else workers.reset_peak()

    def peak(self) -> int:
        return self._device.memory_stats()["peak_bytes_in_use"] if self._on_device else workers.peak()


def watch_once(model: Any, video: np.ndarray, name: str, memory_usage: MemoryUsage) -> dict:
    """One run: seconds in total and by the library's stages; bytes before, at the peak, and of the memory.

    sparse_s: after the last stride, when only the sparse level is made; the library counts it as pre-filling.
    """
    import jax

    before, marks, timings = memory_usage.reset(), [time.perf_counter()], {}
    reported = marks[0]

    def progress(done: int, total: int) -> None:
        nonlocal reported
        marks.append(time.perf_counter())
        if marks[-1] - reported > _PROGRESS_S:
            reported = marks[-1]
            reply(progress=f"{name}: {done} of {total} frames")

    memory = model.watch((video, np.arange(len(video))), progress=progress, timings=timings)
    end = time.perf_counter()
    return {
        "timings": timings,
        "sparse_s": end - marks[-1],
        "total_s": end - marks[0],
        "before_bytes": before,
        "peak_bytes": memory_usage.peak(),
        "cache_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves((memory.dense, memory.sparse))),
    }


def prefill(request: dict, more: Iterable[dict]) -> None:
    """Pre-fill the visual tokens of a case by strides, as watching does, once more per request (see torch_worker)."""
    threads = workers.limit_cores(request["threads"])
    import jax

    import vxl2_jax as vxl2
    from vxl2_jax import prefill
    from vxl2_jax.layout import Layout, PrefillRule

    model, case = vxl2.load("nano", "float32", compile_cache=False), np.load(request["case"])
    stride = model.sizes.stride
    layout = Layout(int(case["prefix"]), tuple(case["timestamp_lengths"].tolist()), case["visual"].shape[1])
    visual = np.pad(case["visual"], ((0, -layout.groups % stride), (0, 0), (0, 0)))
    sizes = prefill.shape_for(layout, stride)
    strides = prefill.plan_strides(layout, PrefillRule(), case["ids"], sizes)

    def run_stride(streams: Any, number: int) -> Any:
        tokens = visual[number * stride : (number + 1) * stride]
        inputs = (model.params, model.config, streams, strides[number], tokens)
        return jax.block_until_ready(prefill.run_stride(*inputs, kernel=model.kernel)[0])

    def run() -> Any:
        streams = prefill.empty(model.config, sizes, model.dtype)
        for number in range(len(strides)):
            streams = run_stride(streams, number)
        return streams

    with jax.default_matmul_precision("highest"):
        run_stride(prefill.empty(model.config, sizes, model.dtype), 0)  # compiles, and runs once
        streams = workers.run_repeatedly(run, more, threads=threads, about=f"jax {jax.__version__}")
    cache = np.zeros((2, *streams.visual.k.shape[:2], layout.length, streams.visual.k.shape[-1]), np.float32)
    for stream, positions in zip(streams, (layout.visual_positions(), layout.global_positions()), strict=True):
        for part, rows in enumerate(stream):
            cache[part][:, :, positions] = np.asarray(rows)[:, :, : len(positions)]
    np.save(request["out"], cache[:, :, :, case["compared"]])


TASKS = {"describe": describe, "watch": watch, "prefill": prefill}

if __name__ == "__main__":
    serve(TASKS)
