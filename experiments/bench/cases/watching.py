"""Watching a video: seconds by stage, peak memory and how both grow with its length; pre-filling against PyTorch.

examples:
  python -m experiments.bench watching --frames 256,600,2400                        # nano, this machine
  python -m experiments.bench watching --frames 600,2400 --against torch --torch_python VENV/bin/python
  python -m experiments.bench watching --model real --frames 2048,10000 --out runs/bench       # an accelerator

Every length is watched in a process of its own (a peak of memory never falls), several times: the first run compiles,
the others are medians. The clock starts with resized uint8 frames in host memory. nano watches one frame of noise again
and again; the real sizes have random bfloat16 weights, made on the device, and frames that all differ.
Memory is resident memory, or on an accelerator what its allocator counts. The peak of watching is that of a run after
the first, above what was in use before it: cache and activations, neither weights nor compilation. The C library keeps
tens of MiB of freed memory, which count; with --exact_memory it returns large blocks at once, and runs take longer.

--against torch: the language half alone, nano's weights in float32, given the same random visual tokens and ids: ours
by strides, PyTorch all at once through scaled_dot_product_attention under the boolean chunk mask. Each has a process of
its own on the same cores, and runs alternate, so that other load on the machine affects both. PyTorch runs every layer
whole, as the original does, ours stops at the last layer's keys and values; with --torch_stops_early both do. PyTorch
reproduces golden logits first, or is not timed. Memory is counted above weights and inputs (ours above compiled
programs, too); PyTorch's mask counts.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from experiments.bench import workers
from experiments.bench.cases import comparison
from experiments.bench.machine import Session, UsageError
from experiments.bench.measure import Ceilings, Timing
from experiments.bench.report import Row, joined

FLOPS = {"vision": ("vision", "dts", "projector"), "pre-fill": ("language_linear", "attention")}
"""The parts of a plan's FLOPs that a stage computes."""
RETURN_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
"""Environment in which glibc returns freed blocks of that many bytes and more to the system at once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(frames=[256, 600, 2400], samples=3)
    add = parser.add_argument
    add("--model", default="nano", choices=["nano", "real"], help="nano, or random weights of the released sizes")
    add("--exact_memory", action="store_true", help="freed blocks return to the system at once (glibc only)")
    comparison.add_arguments(parser)


def describe(args: argparse.Namespace) -> tuple[dict[str, Any], Ceilings]:
    """The machine and its ceilings, from a worker, so that this process never holds an accelerator."""
    replies, failure = workers.run(workers.JAX, {"task": "describe", "seed": args.seed}, limit_s=args.limit_s)
    if failure:
        raise UsageError(f"JAX does not run: {failure}")
    if args.model == "real" and not replies[0]["accelerator"]:
        raise UsageError(
            "--model real: 15.6 GB of weights and a petaflop or more for every 800 frames are too much for a CPU; "
            "use --model nano, or a machine with an accelerator"
        )
    return replies[0]["machine"], Ceilings(**replies[0]["ceilings"])


def run(session: Session) -> None:
    args, report = session.args, session.report
    env = RETURN_BLOCKS if args.exact_memory else {}
    for frames in sorted(set(args.frames)):
        for row in watch(args, frames, report.left_s, env):
            report.add(row)
    if args.against:
        for frames in sorted(set(args.frames)):
            comparison.run(session, frames, env)


def watch(args: argparse.Namespace, frames: int, left_s: float, env: dict[str, str]) -> list[Row]:
    """Watch one length in a worker; rows of the stages and of the whole."""
    name = {"nano": "nano", "real": "released sizes"}[args.model]
    if left_s <= 0:
        return [Row(f"{frames} frames", name, "watching", note="not run: --limit_s is used up")]
    request = {"task": "watch", "frames": frames, "model": args.model, "samples": args.samples, "seed": args.seed}

    def on_reply(line: dict) -> None:
        if "progress" in line:
            print(f"{frames} frames, {line['progress']}", file=sys.stderr, flush=True)

    replies, failure = workers.run(workers.JAX, request, limit_s=left_s, env=env, on_reply=on_reply)
    return rows(name, frames, replies, failure)


def rows(name: str, frames: int, replies: list[dict], failure: str) -> list[Row]:
    """Rows of one length from a worker's replies. All runs but the first, which compiles, are timed."""
    runs = [line["run"] for line in replies if "run" in line]
    plan = next((line for line in replies if "flops" in line), {})
    case = f"{frames} frames, {plan['tokens']} tokens" if plan else f"{frames} frames"
    if len(runs) < 2:
        first = f"first run {runs[0]['total_s']:.3g} s" if runs else ""
        note = joined(first, failure and f"not timed: {failure}")
        return [Row(case, name, "watching", note=note, details={**plan, "runs": runs})]
    first, *timed = runs
    by_stage = [stages(run) for run in timed]
    flops = {stage: sum(plan["flops"][part] for part in parts) for stage, parts in FLOPS.items()}
    total = Timing(tuple(run["total_s"] for run in timed))
    peak = max(run["peak_bytes"] for run in runs)
    note = joined(
        f"{frames / total.seconds:.4g} frames/s",
        f"first run {first['total_s']:.3g} s",
        f"planned {plan['planned_bytes'] / 2**20:.0f} MiB, cache {first['cache_bytes'] / 2**20:.0f} MiB",
        f"peak with the model and compilation {peak / 2**20:.0f} MiB",
        failure,
    )
    details = {**plan, "runs": runs, "frames_per_s": frames / total.seconds, "peak_bytes": peak}
    details |= {"compiling_s": first["total_s"] - total.seconds, "cache_bytes": first["cache_bytes"]}
    above = max(run["peak_bytes"] - run["before_bytes"] for run in timed)
    more = {"memory_bytes": above, "note": note, "details": details}
    return [
        Row(case, name, "watching", sum(flops.values()), timing=total, frames=frames, **more),
        *(
            Row(case, name, stage, flops.get(stage, 0), timing=Timing(tuple(s[stage] for s in by_stage)), frames=frames)
            for stage in by_stage[0]
        ),
    ]


def stages(run: dict) -> dict[str, float]:
    """Seconds of a run in which nothing was compiled, by stage."""
    spent, sparse = run["timings"], run["sparse_s"]
    found = {"vision": spent["vision"], "pre-fill": spent["prefill"] - sparse, "sparse level": sparse}
    return {**found, "reading and other": run["total_s"] - sum(found.values())}
