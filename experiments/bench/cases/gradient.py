"""The gradient of attention in training: one layer of a whole video, each kernel against its floor and plain JAX.

examples:
  python -m experiments.bench gradient                                  # what suits this machine
  python -m experiments.bench gradient --frames 256,2048 --backends tpu,reference --out runs/bench

Rows of the visual tokens and of the timestamps are two calls, as in a training step. Only the backward pass is timed: the
forward pass has been computed. TFLOP/s count five products of matrices over visible pairs; a kernel that recomputes logits in two
passes multiplies seven times. Errors are relative to plain JAX, over the gradients of queries, keys and values.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import arguments, kernels, measure, problems
from experiments.bench.cases import attention as prefill_case
from experiments.bench.machine import Session
from experiments.bench.measure import TOLERANCE, relative_error
from experiments.bench.report import BASELINE, Row
from pallas_kernels import attention
from pallas_kernels.attention import REFERENCE, Kernel, KVCache, gradient
from vxl2_jax.layout import PrefillRule

DEFAULTS = {
    "frames": ([256, 1024], [96]),
    "visual": (144, 144),
    "heads": (28, 2),
    "kv_heads": (4, 1),
    "width": (128, 128),
}
BASELINES = ["plain"]
"""Plain JAX."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_language(parser)
    add = parser.add_argument
    add("--block_size", type=arguments.positive, default=4, metavar="N", help="groups per block")
    add("--prev_blocks", type=int, default=3, metavar="N", help="earlier blocks that a visual token sees")
    parser.set_defaults(strides="all")


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for arguments that are inconsistent."""
    prefill_case.check(args)


def run(session: Session) -> None:
    args = session.args
    for frames in args.frames:
        layout = problems.video_layout(frames, args.visual)
        whole = argparse.Namespace(**vars(args) | {"stride_groups": layout.groups})
        problem = prefill_case.make_problem(layout, PrefillRule(args.block_size, args.prev_blocks), whole)
        row = Row(f"{frames} frames, {layout.length} tokens", "", "gradients", *work(problem), frames=frames)
        for name, make in kernels.candidates(session, problem.width):
            session.report.attempt(replace(row, name=name), partial(ours, session, problem, make))
        for _ in args.baselines:
            plain = replace(row, name="plain JAX", kind=BASELINE)
            session.report.attempt(plain, partial(ours, session, problem, lambda: REFERENCE))


def work(problem: prefill_case.Problem) -> tuple[int, int]:
    """Least FLOPs and bytes: five products; queries, output and its gradient, keys and values are read, and gradients written."""
    flops, nbytes = problem.work()
    return 5 * flops // 2, 2 * nbytes


def ours(session: Session, problem: prefill_case.Problem, make: Callable[[], Kernel]) -> dict[str, Any]:
    """Time the backward pass of a layer, and compare its results with plain JAX."""
    kernel = make()
    queries, caches = problem.inputs(session.args.seed)
    streams = tuple(jax.tree.map(lambda a: a[:1], cache) for cache in caches)
    keys = jax.random.split(jax.random.key(session.args.seed + 1), len(queries))
    d_out = [jax.random.normal(key, q.shape, q.dtype) for key, q in zip(keys, queries, strict=True)]

    def pulled(kernel: Kernel) -> Any:
        """The function from gradients of the output to those of queries and streams: a pytree."""

        def forward(queries: list[jax.Array], streams: tuple[KVCache, ...]) -> list[jax.Array]:
            plans = (
                attention.plan_attention(kernel, *bounds, heads=problem.heads, streams=streams)
                for bounds in problem.ranges(0)
            )
            return [gradient.attend(q, streams, plan) for q, plan in zip(queries, plans, strict=True)]

        return jax.jit(lambda q, s: jax.vjp(forward, q, s)[1])(queries, streams)

    backward = jax.jit(lambda pull, d_out: pull(d_out))
    pull = pulled(kernel)
    timing = measure.clock(lambda operands: backward(*operands), (pull, d_out), samples=session.args.samples)
    found, expected = (jax.tree.leaves(backward(p, d_out)) for p in (pull, pulled(REFERENCE)))
    how = gradient.refusal(kernel, dtype=jnp.dtype(problem.dtype), width=problem.width)
    note = "; ".join(part for part in (kernels.note(kernel), how and f"in plain JAX: {how}") if part)
    return {
        "timing": timing,
        "error": max(relative_error(a, b) for a, b in zip(found, expected, strict=True)),
        "tolerance": TOLERANCE[problem.dtype],
        "note": note if kernel != REFERENCE else "",
    }
