"""The vision side: attention over a frame's patches by each kernel and by libraries, and the tower at real size.

examples:
  python -m experiments.bench vision                                    # what suits this machine
  python -m experiments.bench vision --frames 16,32,64,128 --backends hopper,ampere,reference --out runs/bench
  python -m experiments.bench vision --no_tower --backends hopper --tiles "128,128,2;128,192,2" --baselines none

Attention: over the 729 patches of each frame, 16 heads of width 72; operations are counted at that width, whatever a
kernel pads to. Tower: SigLIP alone, and SigLIP with DTS and projector as watching runs them, random weights. Errors are
relative, of the first frame, against full float32. --frames: how many frames are encoded at a time.

Baselines: xla, cudnn (jax.nn.dot_product_attention), mgpu (JAX's Hopper kernel), sdpa (PyTorch).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import alternatives, costs, kernels, measure, problems
from experiments.bench.alternatives import Attention
from experiments.bench.machine import Session, UsageError
from experiments.bench.report import Row, joined
from pallas_kernels import attention
from pallas_kernels.attention import Kernel
from vxl2_jax import config as configs
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import video_xl_2

DEFAULTS = {"frames": ([16, 32, 64, 128], [4]), "heads": (16, 2), "width": (72, 72)}
BASELINES = ["xla", "cudnn", "mgpu", "sdpa"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no_tower", action="store_true", help="attention only")


def model_config(accelerator: bool) -> ModelConfig:
    """The released model; on a CPU nano."""
    return configs.video_xl_2() if accelerator else configs.nano(512)


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for arguments that are inconsistent."""
    group = configs.video_xl_2().frames_per_group
    if not args.no_tower and any(frames % group for frames in args.frames):
        raise UsageError(f"--frames: the tower takes multiples of {group} frames; or use --no_tower")


def run(session: Session) -> None:
    args, config = session.args, model_config(session.accelerator)
    patches = config.vision.grid**2
    for frames in args.frames:
        problem = Attention(frames, patches, patches, args.heads, args.heads, args.width, args.dtype)
        computes = f"attention, {patches} patches, {args.heads} heads of {args.width}"
        row = Row(f"{frames} frames", "", computes, problem.flops, problem.bytes)
        for name, make in kernels.candidates(session, args.width):

            def ours(problem=problem, make=make) -> dict[str, Any]:
                kernel = make()
                found = alternatives.measure_call(session, problem, partial(attention.full_attention, kernel))
                return {**found, "note": kernels.note(kernel)}

            session.report.attempt(replace(row, name=name), ours)
        for name in args.baselines:
            alternatives.add(session, name, problem, row)
    if not args.no_tower:
        params = problems.weights(config, ["vision", "dts", "projector"], args.dtype, args.seed)
        for frames in args.frames:
            _bench_tower(session, config, params, frames)


def _bench_tower(session: Session, config: ModelConfig, params: Any, frames: int) -> None:
    """The tower alone, and frames → visual tokens as one batch, per kernel."""
    vision, groups = config.vision, frames // config.frames_per_group
    side, itemsize = vision.image_size, jnp.dtype(session.args.dtype).itemsize
    input_bytes = frames * side * side * 3
    tower_flops = frames * costs.tower_flops(vision)
    group_flops = costs.dts_flops(config) + costs.projector_flops(config)
    tower_bytes = problems.nbytes(params["vision"]) + frames * vision.grid**2 * vision.width * itemsize
    all_bytes = problems.nbytes(params) + groups * config.visual_tokens * config.language.width * itemsize

    def tower(kernel: Kernel, params: Any, images: jax.Array) -> jax.Array:
        return video_xl_2.frame_features(params, config, images, kernel)

    def whole(kernel: Kernel, params: Any, images: jax.Array) -> jax.Array:
        return video_xl_2.encode_frames(params, config, images, groups, kernel)

    parts = {
        "SigLIP tower": (tower, tower_flops, tower_bytes + input_bytes),
        "SigLIP, DTS, projector": (whole, tower_flops + groups * group_flops, all_bytes + input_bytes),
    }

    def measured(make: Callable[[], Kernel], call: Callable[..., jax.Array], row: Row) -> dict[str, Any]:
        kernel = make()
        count = measure.turns(session.report.ceilings.floor_s(row.flops, row.bytes), session.accelerator)
        run = measure.repeated(lambda _, images, params: call(kernel, params, images), count)
        number = 2 if session.accelerator else 1
        sets = [
            (jax.random.randint(jax.random.key(n), (frames, side, side, 3), 0, 256, jnp.uint8), params)
            for n in range(number)
        ]
        timing = measure.clock(run, sets, samples=session.args.samples, calls=number * count)
        if not bool(jnp.isfinite(run(sets)).all()):
            raise FloatingPointError("the result is not finite")
        per_s = frames / timing.seconds
        note = joined(f"{per_s:.1f} frames/s", kernels.note(kernel))
        return {"timing": timing, "note": note, "details": {"frames_per_s": per_s}}

    for name, make in kernels.candidates(session, vision.width // vision.heads, tiles=False):
        for computes, (call, flops, nbytes) in parts.items():
            row = Row(f"{frames} frames", name, computes, flops, nbytes)
            session.report.attempt(row, partial(measured, make, call, row))
