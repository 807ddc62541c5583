"""The vision side: attention over a frame's patches by each kernel and by libraries, and the whole tower at real size.

    python -m experiments.bench_vision                                    # what suits this machine
    python -m experiments.bench_vision --batches 16,32,64,128 --backends hopper,ampere,reference --out runs/bench
    python -m experiments.bench_vision --notower --backends hopper --tiles "128,128,2;128,192,2" --baselines none

Attention: full, over the 729 patches of each frame, 16 heads of width 72; operations are counted at that width,
whatever a kernel pads to. Tower: SigLIP alone, and SigLIP with temporal synthesis (DTS) and projector as watching runs
them, random weights. Errors are relative, of the first frame, against full float32.

Baselines: xla, cudnn (jax.nn.dot_product_attention), mgpu (JAX's own Hopper kernel), sdpa (PyTorch).

On a CPU everything is tiny, kernels run in Pallas' interpreter, and timings mean nothing.
Exit code: 0, 1 if a result of ours is wrong, 2 for flags that make no sense.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from experiments.bench import session

session.share_the_gpu()

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.bench import counts, dense, exact, kernels, layouts, machine, measure, options, pytorch, weights
from experiments.bench.measure import Timing
from experiments.bench.report import BASELINE, Report, Row
from pallas_kernels import attention
from pallas_kernels.attention import KVCache
from vxl2_jax import config as configs
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import video_xl_2

_BATCHES = flags.DEFINE_list("batches", None, "Frames at a time. Default: 16, 32, 64, 128.")
_TOWER = flags.DEFINE_boolean("tower", True, "Also the vision tower, alone and with what follows it.")
_NAMES = ["xla", "cudnn", "mgpu", "sdpa"]
_TORCH_LIMIT_S = 300.0


@dataclasses.dataclass(frozen=True)
class Shape:
    """Attention of a batch of frames."""

    frames: int
    patches: int
    heads: int
    width: int
    dtype: str

    @property
    def array(self) -> tuple[int, int, int, int]:
        return self.frames, self.patches, self.heads, self.width

    def row(self, name: str, **more: Any) -> Row:
        flops = self.frames * counts.attention_flops(self.patches**2, self.heads, self.width)
        itemsize = jnp.dtype(self.dtype).itemsize
        one = counts.attention_bytes(self.patches, self.patches, self.heads, self.heads, self.width, itemsize)
        computes = f"attention, {self.patches} patches, {self.heads} heads of {self.width}"
        return Row(f"{self.frames} frames", name, computes, flops, self.frames * one, **more)


def measured(report: Report, shape: Shape, row: Row, call: Any, samples: int, note: str = "") -> Row:
    """Time call(q, k, v) and check the first frame of other inputs."""
    large = machine.is_accelerator(jax.devices()[0])
    number = measure.sets_beyond_cache(int(row.bytes)) if large else 1

    def draw(n):
        return tuple(layouts.normal(jax.random.key(3 * n + part), shape.array, shape.dtype) for part in range(3))

    sets, fresh = [draw(n) for n in range(number)], draw(1000 + options.SEED.value)
    count = measure.turns(number * report.ceilings.floor_s(row.flops, row.bytes), large)
    run = measure.repeated(lambda _, *qkv: call(*qkv), count)
    timing = measure.clock(run, sets, samples=samples, calls=count * number)
    q, k, v = (a[0] for a in fresh)
    rows = np.unique(np.linspace(0, shape.patches - 1, min(shape.patches, 64)).astype(np.int32))
    stream = KVCache(*(jnp.swapaxes(a, 0, 1)[None] for a in (k, v)))
    k_end = np.full((1, len(rows)), shape.patches, np.int32)
    truth = exact.attend(q[rows], (stream,), np.zeros_like(k_end), k_end)
    out = run([*sets[:-1], fresh])
    error = exact.relative_error(out[0, rows], truth) if bool(jnp.isfinite(out).all()) else float("nan")
    return dataclasses.replace(row, timing=timing, error=error, tolerance=exact.TOLERANCE[shape.dtype], note=note)


def bench_ours(report: Report, device: Any, shape: Shape, samples: int) -> None:
    for name in kernels.chosen(device):
        for tiles in [None] if name == "reference" else options.tile_candidates():
            row = shape.row(kernels.label(name, tiles))

            def make(name=name, tiles=tiles, row=row) -> Row:
                kernel = kernels.kernel(name, tiles, width=shape.width, dtype=shape.dtype, device=device)
                call = partial(attention.full_attention, kernel)
                return measured(report, shape, row, call, samples, kernels.remark(kernel))

            report.attempt(make, row)


def bench_libraries(report: Report, device: Any, shape: Shape, names: list[str], samples: int) -> None:
    for name in (n for n in names if n in dense.NAMES):
        row = shape.row(dense.WHAT[name], kind=BASELINE)
        why = dense.refusal(
            name,
            device,
            batch=shape.frames,
            queries=shape.patches,
            keys=shape.patches,
            heads=shape.heads,
            width=shape.width,
            causal=False,
        )
        if why:
            report.add(dataclasses.replace(row, note=f"not run: {why}"))
        else:
            call = partial(dense.attend, name, count=shape.patches, causal=False)
            report.attempt(lambda row=row, call=call: measured(report, shape, row, call, samples), row)
    if "sdpa" in names:
        row = shape.row(pytorch.WHAT["sdpa"], kind=BASELINE)

        def make() -> Row:
            frames, patches, heads, width = shape.array
            case = pytorch.Case("sdpa", frames, patches, patches, heads, heads, width)
            [found] = pytorch.measure(
                [case],
                python=options.TORCH_PYTHON.value,
                dtype=shape.dtype,
                samples=samples,
                seed=options.SEED.value,
                limit_s=min(report.left_s, _TORCH_LIMIT_S),
            )
            if not found.seconds:
                return dataclasses.replace(row, note=f"not run: {found.note}")
            timing, tolerance = Timing(*found.seconds), exact.TOLERANCE[shape.dtype]
            return dataclasses.replace(row, timing=timing, error=found.error, tolerance=tolerance, note=found.note)

        report.attempt(make, row)


def bench_tower(
    report: Report, device: Any, config: ModelConfig, params: Any, frames: int, samples: int, dtype: str
) -> None:
    """The tower alone, and frames → visual tokens as one batch, per kernel."""
    side, groups = config.vision.image_size, frames // config.frames_per_group

    def images(seed):
        return jax.random.randint(jax.random.key(seed), (frames, side, side, 3), 0, 256, jnp.uint8)

    tower = frames * counts.tower_flops(config.vision)
    after = groups * (counts.dts_flops(config) + counts.projector_flops(config))
    itemsize, vision = jnp.dtype(dtype).itemsize, config.vision
    in_bytes, out_bytes = frames * side * side * 3, groups * config.visual_tokens * config.language.width * itemsize
    parts = {
        "SigLIP tower": (
            lambda kernel: lambda params, images: video_xl_2.frame_features(params, config, images, kernel),
            tower,
            layouts.size(params["vision"]) + in_bytes + frames * vision.grid**2 * vision.width * itemsize,
        ),
        "SigLIP, DTS, projector": (
            lambda kernel: lambda params, images: video_xl_2.encode_frames(params, config, images, groups, kernel),
            tower + after,
            layouts.size(params) + in_bytes + out_bytes,
        ),
    }
    for name in kernels.chosen(device):
        for computes, (make_call, flops, nbytes) in parts.items():
            row = Row(f"{frames} frames", name, computes, flops, nbytes)

            def make(name=name, make_call=make_call, row=row) -> Row:
                width = vision.width // vision.heads
                kernel = kernels.kernel(name, None, width=width, dtype=dtype, device=device)
                call = make_call(kernel)
                count = measure.turns(report.ceilings.floor_s(row.flops, row.bytes), machine.is_accelerator(device))
                run = measure.repeated(lambda _, images, params: call(params, images), count)
                number = 2 if machine.is_accelerator(device) else 1
                sets = [(images(n), params) for n in range(number)]
                timing = measure.clock(run, sets, samples=samples, calls=number * count)
                if not bool(jnp.isfinite(run(sets)).all()):
                    raise FloatingPointError("the result is not finite")
                per_s = frames / timing.seconds
                note = "; ".join(filter(None, (f"{per_s:.1f} frames/s", kernels.remark(kernel))))
                return dataclasses.replace(row, timing=timing, note=note, details={"frames_per_s": per_s})

            report.attempt(make, row)


def geometry(large: bool) -> ModelConfig:
    """The released model's vision side, or on a CPU the shipped small model's."""
    return configs.video_xl_2() if large else configs.nano(512)


def bench(report: Report, device: Any) -> None:
    large, samples, dtype = machine.is_accelerator(device), session.samples(device), options.DTYPE.value
    config, names = geometry(large), options.names(options.BASELINES, _NAMES, _NAMES)
    batches = options.integers(_BATCHES, [16, 32, 64, 128] if large else [4])
    if _TOWER.value and any(frames % config.frames_per_group for frames in batches):
        group = config.frames_per_group
        raise options.UsageError(f"--batches: the tower takes multiples of {group} frames; or use --notower")
    vision = config.vision
    heads = options.given(options.HEADS, vision.heads if large else 2)
    width = options.given(options.WIDTH, vision.width // vision.heads if large else 72)
    for frames in batches:
        shape = Shape(frames, vision.grid**2, heads, width, dtype)
        bench_ours(report, device, shape, samples)
        bench_libraries(report, device, shape, names, samples)
    if _TOWER.value:
        params = weights.draw(config, ["vision", "dts", "projector"], dtype, options.SEED.value)
        for frames in batches:
            bench_tower(report, device, config, params, frames, samples, dtype)


def main(_: list[str]) -> None:
    session.run("vision", bench)


if __name__ == "__main__":
    app.run(main)
