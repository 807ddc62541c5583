"""Attention of chunk-based pre-filling: one layer of a whole video, each kernel against its floor and the alternatives.

examples:
  python -m experiments.bench attention                                 # what suits this machine
  python -m experiments.bench attention --frames 256,600,2048,10000 --backends hopper,ampere --out runs/bench
  python -m experiments.bench attention --frames 10000 --strides median --baselines none \\
      --backends hopper --tiles "128,128,2;128,144,2;128,128,3"         # tuning: a row per candidate
  python -m experiments.bench attention --torch_python ~/torch/bin/python   # PyTorch from another environment

Strides of 64 groups, each with its visual rows and its timestamp rows as two calls; keys of both streams are read in
place from a cache of several layers. TFLOP/s count visible pairs only (4 · width · heads operations a pair). Errors are
relative, of sampled rows against full float32.

Baselines: xla, cudnn, mgpu, splash (dense causal attention over a sequence of the same length, counted on causal pairs);
flex, flex_streams, flex_tuned (PyTorch's FlexAttention with the same rule: natural order, our storage order,
auto-tuned); sdpa (PyTorch, dense causal).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import alternatives, arguments, costs, kernels, masks, measure, problems
from experiments.bench.machine import Session, UsageError
from experiments.bench.measure import TOLERANCE, Timing, evenly, reference_attention, relative_error
from experiments.bench.report import Row
from pallas_kernels import attention
from pallas_kernels.attention import Kernel, KVCache
from vxl2_jax import prefill
from vxl2_jax.layout import Layout, PrefillRule, attention_pairs

DEFAULTS = {
    "frames": ([256, 600, 2048, 10000], [96]),
    "stride_groups": (64, 8),
    "visual": (144, 144),
    "heads": (28, 2),
    "kv_heads": (4, 1),
    "width": (128, 128),
}
BASELINES = [*alternatives.NAMES]
_SAMPLED = 24  # rows checked of each part of a stride


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_language(parser)
    add = parser.add_argument
    add("--strides", default="all", help="which strides are timed: all, median, or a number of them, evenly spread")
    add("--stride_groups", type=arguments.positive, metavar="N", help="groups per stride")
    add("--block_size", type=arguments.positive, default=4, metavar="N", help="groups per block")
    add("--prev_blocks", type=int, default=3, metavar="N", help="earlier blocks that a visual token sees")


@dataclass(frozen=True)
class Problem:
    """One layer of pre-filling a layout. planned: of all strides; timed: the numbers of those that are timed."""

    layout: Layout
    rule: PrefillRule
    heads: int
    kv_heads: int
    width: int
    dtype: str
    sizes: prefill.PrefillShape
    planned: list[Any]
    timed: tuple[int, ...]

    def ranges(self, stride: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(k_start, k_end), int32 [2, rows], of the visual rows and of the timestamp rows."""
        one, visual = self.planned[stride], self.sizes.stride * self.layout.visual
        return [(one.k_start[:, rows], one.k_end[:, rows]) for rows in (slice(visual), slice(visual, None))]

    def work(self) -> tuple[int, int]:
        """Least FLOPs and bytes of the timed strides."""
        flops = nbytes = 0
        for k_start, k_end in (part for stride in self.timed for part in self.ranges(stride)):
            queries = int((k_end > k_start).any(axis=0).sum())
            keys, itemsize = costs.keys_read(k_start, k_end), jnp.dtype(self.dtype).itemsize
            flops += costs.attention_flops(costs.visible_pairs(k_start, k_end), self.heads, self.width)
            nbytes += costs.attention_bytes(queries, keys, self.heads, self.kv_heads, self.width, itemsize)
        return flops, nbytes

    def inputs(self, seed: int) -> tuple[list[jax.Array], tuple[KVCache, KVCache]]:
        """Queries [N, H, D] of both parts, and both streams with more layers than a device's cache holds."""
        keys = jax.random.split(jax.random.key(seed), 4)
        lengths = (self.sizes.visual, self.sizes.global_)
        one = 2 * sum(lengths) * self.kv_heads * self.width * jnp.dtype(self.dtype).itemsize
        sizes = (max(2, measure.sets_beyond_cache(one)), self.kv_heads)
        streams = tuple(
            problems.stream(key, *sizes, length, self.width, self.dtype)
            for key, length in zip(keys[:2], lengths, strict=True)
        )
        queries = [
            jax.random.normal(key, (k_start.shape[1], self.heads, self.width), self.dtype)
            for key, (k_start, _) in zip(keys[2:], self.ranges(0), strict=True)
        ]
        return queries, streams


def make_problem(layout: Layout, rule: PrefillRule, args: argparse.Namespace) -> Problem:
    """Plan the strides of a layout. args: stride_groups, strides, heads, kv_heads, width and dtype are read."""
    sizes = prefill.shape_for(layout, args.stride_groups)
    planned = prefill.plan_strides(layout, rule, np.zeros(layout.global_length, np.int32), sizes)
    timed = timed_strides(args.strides, len(planned))
    return Problem(layout, rule, args.heads, args.kv_heads, args.width, args.dtype, sizes, planned, timed)


def timed_strides(wanted: str, count: int) -> tuple[int, ...]:
    """The strides, of `count`, that --strides names."""
    if wanted == "all":
        return tuple(range(count))
    if wanted == "median":
        return (count // 2,)
    return tuple(sorted(set(np.linspace(0, count - 1, min(int(wanted), count)).round().astype(int).tolist())))


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for arguments that are inconsistent."""
    if args.strides not in ("all", "median") and not (args.strides.isdigit() and int(args.strides)):
        raise UsageError(f"--strides takes all, median or a number of at least 1, not {args.strides!r}")
    if args.heads % args.kv_heads:
        raise UsageError(f"{args.heads} query heads cannot share {args.kv_heads} key heads evenly")


def run(session: Session) -> None:
    for frames in session.args.frames:
        layout = problems.video_layout(frames, session.args.visual)
        rule = PrefillRule(session.args.block_size, session.args.prev_blocks)
        problem = make_problem(layout, rule, session.args)
        timed, count = len(problem.timed), len(problem.planned)
        strides = "all strides" if timed == count else f"{timed} of {count} strides"
        case = f"{frames} frames, {layout.length} tokens"
        row = Row(case, "", f"visible pairs, {strides}", *problem.work(), frames=frames)
        for name, make in kernels.candidates(session, problem.width):
            session.report.attempt(replace(row, name=name), partial(ours, session, problem, make))
        _bench_alternatives(session, problem, row)


def ours(session: Session, problem: Problem, make: Callable[[], Kernel]) -> dict[str, Any]:
    """Time one layer's attention over the strides; check sampled rows of the first, middle and last of them."""
    kernel, samples, seed = make(), session.args.samples, session.args.seed
    queries, streams = problem.inputs(seed)
    shapes = jax.eval_shape(lambda: streams)
    plan = jax.jit(
        lambda k_start, k_end: attention.plan_attention(kernel, k_start, k_end, heads=problem.heads, streams=shapes)
    )
    layers = streams[0].k.shape[0]

    def call(number: jax.Array, queries: list[jax.Array], streams: tuple, plans: list) -> list[jax.Array]:
        return [attention.attend(q, streams, p, layer=number % layers)[0] for q, p in zip(queries, plans, strict=True)]

    floor_s = session.report.ceilings.floor_s(*problem.work()) / len(problem.timed)
    count = measure.turns(floor_s, session.accelerator)
    timed, last_layer = measure.repeated(call, count), (count - 1) % layers
    checked = {problem.timed[at] for at in (0, len(problem.timed) // 2, -1)}
    timings, errors = [], []
    for stride in problem.timed:
        ranges = problem.ranges(stride)
        plans = [plan(*bounds) for bounds in ranges]
        timings.append(measure.clock(timed, [(queries, streams, plans)], samples=samples, calls=count))
        if stride in checked:
            # The executable that was timed, on other queries: an output that was never written cannot be right.
            fresh = [jax.random.normal(jax.random.key(seed + 1 + stride), q.shape, q.dtype) for q in queries]
            for q, out, (k_start, k_end) in zip(fresh, timed([(fresh, streams, plans)]), ranges, strict=True):
                rows = np.flatnonzero((k_end > k_start).any(axis=0))
                if len(rows):
                    rows = rows[evenly(len(rows), _SAMPLED)]
                    expected = reference_attention(q[rows], streams, k_start[:, rows], k_end[:, rows], last_layer)
                    errors.append(relative_error(out[rows], expected))
                if not bool(jnp.isfinite(out).all()):
                    errors.append(float("nan"))
    first = problem.ranges(problem.timed[0])[0]
    visible, causal = attention_pairs(problem.layout, problem.rule)
    return {
        "timing": Timing.total(timings),
        "error": float(np.max(errors)),  # np.max keeps a NaN, which max would lose
        "tolerance": TOLERANCE[problem.dtype],
        "note": kernels.note(kernel),
        "details": {
            "strides": list(problem.timed),
            "seconds_of_strides": [t.seconds for t in timings],
            "seconds_to_plan_a_stride": measure.clock(lambda bounds: plan(*bounds), first, samples=samples).seconds,
            "tiles": [str(p.tiles) for p in plans],
            "pieces": [p.pieces for p in plans],
            "turns": count,
            "visible_of_causal": visible / causal,
        },
    }


def _bench_alternatives(session: Session, problem: Problem, row: Row) -> None:
    """Libraries over the sequence: dense causal attention in natural order, or FlexAttention with the same rule."""
    length, heads = problem.layout.length, problem.heads
    visible, _ = attention_pairs(problem.layout, problem.rule)
    for name in session.args.baselines:
        flex = name in alternatives.FLEX_NAMES
        sizes = (1, length, length, heads, problem.kv_heads, problem.width, problem.dtype)
        dense, rule = alternatives.Attention(*sizes, causal=not flex), None
        computes, flops = "dense causal", dense.flops
        if flex:
            tokens = masks.tokens(problem.layout, problem.rule, streams=name != "flex")
            rule = (tokens, masks.window(problem.rule))
            computes, flops = "visible pairs, one call", costs.attention_flops(visible, heads, problem.width)
        row = replace(row, computes=computes, flops=flops, bytes=dense.bytes)
        alternatives.add(session, name, dense, row, rule=rule)
