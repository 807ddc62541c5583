"""Attention of chunk-based pre-filling, one layer of a whole video: each kernel against its floor and the alternatives.

    python -m experiments.bench_attention                                 # what suits this machine
    python -m experiments.bench_attention --frames 256,600,2048,10000 --backends hopper,ampere --out runs/bench
    python -m experiments.bench_attention --frames 10000 --strides median --baselines none \\
        --backends hopper --tiles "128,128,2;128,144,2;128,128,3"         # tuning: a row per candidate
    python -m experiments.bench_attention --torch_python ~/torch/bin/python   # PyTorch from another environment

Work is that of pre-filling: strides of 64 groups, per stride the visual rows and the timestamp rows as two calls, keys
of both streams read in place from a cache of several layers. TFLOP/s count visible pairs only (4 · width · heads
operations a pair); the floor is the longer of operations and bytes over ceilings measured in the same run. Errors are
relative, of random rows against full float32; NaN fails.

Baselines: xla, cudnn, mgpu, splash (dense causal, a sequence of the same length, counted on causal pairs); flex,
flex_streams, flex_tuned (PyTorch's FlexAttention with the same rule: natural order, our order of storage, auto-tuned);
sdpa (PyTorch, dense causal). One that cannot run leaves a row that says why.

On a CPU everything is tiny, kernels run in Pallas' interpreter, and timings mean nothing.
Exit code: 0, 1 if a result of ours is wrong, 2 for flags that make no sense.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

from experiments.bench import session

session.share_the_gpu()

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.bench import counts, dense, exact, kernels, layouts, machine, masks, measure, options, pytorch
from experiments.bench.measure import Timing
from experiments.bench.report import BASELINE, Report, Row
from pallas_kernels import attention
from pallas_kernels.attention import Kernel, KVCache
from vxl2_jax import prefill
from vxl2_jax.layout import Layout, PrefillRule, attention_pairs

_STRIDES = flags.DEFINE_string(
    "strides", "all", "Which strides are timed: all, median, or a number of them, evenly spread."
)
_STRIDE_GROUPS = flags.DEFINE_integer("stride_groups", None, "Groups per stride.", lower_bound=1)
_BLOCK_SIZE = flags.DEFINE_integer("block_size", 4, "Groups per block.", lower_bound=1)
_PREV_BLOCKS = flags.DEFINE_integer("prev_blocks", 3, "Earlier blocks that a visual token sees.", lower_bound=0)
_PARTS = flags.DEFINE_boolean("parts", False, "Also time visual rows and timestamp rows apart.")
_SAMPLED = 24  # rows checked of each kind and stride
_TORCH_LIMIT_S = 600.0

PARTS = ("visual rows", "timestamp rows")


@dataclass(frozen=True)
class Problem:
    """One layer of pre-filling a layout. k_start, k_end: per stride and part, int32 [2, rows of the part]."""

    layout: Layout
    rule: PrefillRule
    heads: int
    kv_heads: int
    width: int
    dtype: str
    sizes: prefill.PrefillShape
    strides: tuple[int, ...]
    k_start: list[tuple[np.ndarray, np.ndarray]]
    k_end: list[tuple[np.ndarray, np.ndarray]]

    @property
    def case(self) -> str:
        return f"{4 * self.layout.groups} frames, {self.layout.length} tokens"

    def ranges(self, stride: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(k_start, k_end) of both parts."""
        return list(zip(self.k_start[stride], self.k_end[stride], strict=True))

    def work(self, parts: tuple[int, ...] = (0, 1)) -> tuple[int, int]:
        """Least operations and bytes of the timed strides."""
        flops = nbytes = 0
        for stride in self.strides:
            for part in parts:
                k_start, k_end = self.ranges(stride)[part]
                queries = int((k_end > k_start).any(axis=0).sum())
                keys = counts.keys_read(k_start, k_end)
                flops += counts.attention_flops(counts.pairs(k_start, k_end), self.heads, self.width)
                nbytes += counts.attention_bytes(
                    queries, keys, self.heads, self.kv_heads, self.width, jnp.dtype(self.dtype).itemsize
                )
        return flops, nbytes


def problem(frames: int, *, visual: int, stride: int, heads: int, kv_heads: int, width: int, dtype: str) -> Problem:
    layout, rule = layouts.video(frames, visual), PrefillRule(_BLOCK_SIZE.value, _PREV_BLOCKS.value)
    sizes = prefill.shape_for(layout, stride)
    planned = prefill.plan_strides(layout, rule, np.zeros(layout.global_length, np.int32), sizes)

    def cut(bounds):
        return (bounds[:, : stride * visual], bounds[:, stride * visual :])

    return Problem(
        layout,
        rule,
        heads,
        kv_heads,
        width,
        dtype,
        sizes,
        timed_strides(_STRIDES.value, len(planned)),
        [cut(one.k_start) for one in planned],
        [cut(one.k_end) for one in planned],
    )


def timed_strides(wanted: str, count: int) -> tuple[int, ...]:
    """Numbers of the strides that --strides names, of `count`."""
    if wanted == "all":
        return tuple(range(count))
    if wanted == "median":
        return (count // 2,)
    if not wanted.isdigit() or wanted == "0":
        raise options.UsageError(f"--strides takes all, median or a number of at least 1, not {wanted!r}")
    return tuple(sorted(set(np.linspace(0, count - 1, min(int(wanted), count)).round().astype(int).tolist())))


def inputs(of: Problem, key: jax.Array) -> tuple[list[jax.Array], tuple[KVCache, KVCache]]:
    """Queries [N, H, D] of both parts, and both streams, of as many layers as no cache holds."""
    keys = jax.random.split(key, 4)
    lengths = (of.sizes.visual, of.sizes.global_)
    one = 2 * sum(lengths) * of.kv_heads * of.width * jnp.dtype(of.dtype).itemsize
    layers = max(2, measure.sets_beyond_cache(one))
    streams = tuple(
        layouts.stream(k, layers, of.kv_heads, length, of.width, of.dtype)
        for k, length in zip(keys[:2], lengths, strict=True)
    )
    queries = [
        jax.random.normal(k, (k_start.shape[1], of.heads, of.width), of.dtype)
        for k, k_start in zip(keys[2:], of.k_start[0], strict=True)
    ]
    return queries, streams


def ours(of: Problem, kernel: Kernel, parts: tuple[int, ...], report: Report, samples: int, seed: int) -> Row:
    """Time one layer's attention over the strides; check sampled rows of the first, middle and last of them."""
    device = jax.devices()[0]
    queries, streams = inputs(of, jax.random.key(seed))
    shapes = jax.eval_shape(lambda: streams)
    ready = jax.jit(
        lambda k_start, k_end: attention.plan_attention(kernel, k_start, k_end, heads=of.heads, streams=shapes)
    )
    layers = streams[0].k.shape[0]

    def call(number: jax.Array, queries: list[jax.Array], streams: tuple, reads: list) -> list[jax.Array]:
        return [attention.attend(q, streams, r, layer=number % layers)[0] for q, r in zip(queries, reads, strict=True)]

    flops, nbytes = of.work(parts)
    count = measure.turns(report.ceilings.floor_s(flops, nbytes) / len(of.strides), machine.is_accelerator(device))
    run, last_layer = measure.repeated(call, count), (count - 1) % layers
    chosen = [queries[part] for part in parts]
    timings, errors = [], []
    for stride in of.strides:
        ranges = [of.ranges(stride)[part] for part in parts]
        reads = [ready(*bounds) for bounds in ranges]
        timings.append(measure.clock(run, [(chosen, streams, reads)], samples=samples, calls=count))
        if stride in (of.strides[0], of.strides[len(of.strides) // 2], of.strides[-1]):
            # The executable that was timed, on other queries: an output that was never written cannot look right.
            fresh = [jax.random.normal(jax.random.key(seed + 1 + stride), q.shape, q.dtype) for q in chosen]
            for q, out, (k_start, k_end) in zip(fresh, run([(fresh, streams, reads)]), ranges, strict=True):
                rows = exact.sample(k_start, k_end, _SAMPLED, seed)
                if len(rows):
                    truth = exact.attend(q[rows], streams, k_start[:, rows], k_end[:, rows], last_layer)
                    errors.append(exact.relative_error(out[rows], truth))
                if not bool(jnp.isfinite(out).all()):
                    errors.append(float("nan"))
    kept, causal = attention_pairs(of.layout, of.rule)
    prepare_s = measure.clock(lambda bounds: ready(*bounds), of.ranges(of.strides[0])[0], samples=samples).seconds
    # np.max keeps a NaN, which max would lose.
    return Row(
        of.case,
        "",
        "",
        flops,
        nbytes,
        Timing.total(timings),
        float(np.max(errors)),
        exact.TOLERANCE[of.dtype],
        note=kernels.remark(kernel),
        details={
            "strides": list(of.strides),
            "seconds_of_strides": [t.seconds for t in timings],
            "seconds_to_prepare_a_stride": prepare_s,
            "tiles": [str(r.tiles) for r in reads],
            "pieces": [r.pieces for r in reads],
            "turns": count,
            "visible_of_causal": kept / causal,
        },
    )


def bench_ours(report: Report, device: Any, of: Problem, samples: int) -> None:
    strides = f"{len(of.strides)} of {len(of.k_start)} strides" if len(of.strides) < len(of.k_start) else "all strides"
    wanted = [((0, 1), f"visible pairs, {strides}")]
    if _PARTS.value:
        wanted += [((part,), f"{PARTS[part]}, {strides}") for part in (0, 1)]
    for name in kernels.chosen(device):
        for tiles in [None] if name == "reference" else options.tile_candidates():
            for parts, computes in wanted:
                labels = {"name": kernels.label(name, tiles), "computes": computes}

                def make(name=name, tiles=tiles, parts=parts, labels=labels) -> Row:
                    kernel = kernels.kernel(name, tiles, width=of.width, dtype=of.dtype, device=device)
                    return Row(**{**vars(ours(of, kernel, parts, report, samples, options.SEED.value)), **labels})

                report.attempt(make, Row(of.case, **labels, flops=of.work(parts)[0], bytes=of.work(parts)[1]))


def bench_dense(report: Report, device: Any, of: Problem, names: list[str], samples: int) -> None:
    """Dense causal attention over the sequence in natural order."""
    length, itemsize = of.layout.length, jnp.dtype(of.dtype).itemsize
    flops = counts.attention_flops(counts.causal_pairs(length), of.heads, of.width)
    nbytes = counts.attention_bytes(length, length, of.heads, of.kv_heads, of.width, itemsize)
    accelerator = machine.is_accelerator(device)
    for name in names:
        row = Row(of.case, dense.WHAT[name], "dense causal", flops, nbytes, kind=BASELINE)
        why = dense.refusal(
            name,
            device,
            batch=1,
            queries=length,
            keys=length,
            heads=of.heads,
            width=of.width,
            causal=True,
        )
        if why:
            report.add(Row(**{**vars(row), "note": f"not run: {why}"}))
            continue

        def make(name=name, row=row) -> Row:
            def normal(n, heads):
                return jax.random.normal(jax.random.key(n), (1, length, heads, of.width), of.dtype)

            number = measure.sets_beyond_cache(nbytes) if accelerator else 1

            def qkv(n):
                return (normal(n, of.heads), normal(n + 100, of.kv_heads), normal(n + 200, of.kv_heads))

            sets = [qkv(n) for n in range(number)]
            call = partial(dense.attend, name, count=length, causal=True)
            ready = partial(dense.ready, name, causal=True)
            count = measure.turns(number * report.ceilings.floor_s(flops, nbytes), accelerator)
            run = measure.repeated(lambda _, *qkv: call(*qkv), count)
            operands = [ready(*one) for one in sets]
            timing = measure.clock(run, operands, samples=samples, calls=count * number)
            q, k, v = normal(7, of.heads), *sets[-1][1:]
            rows = np.linspace(0, length - 1, _SAMPLED).astype(np.int32)
            stream = KVCache(*(jnp.swapaxes(a, 1, 2) for a in (k, v)))
            truth = exact.attend(q[0, rows], (stream,), np.zeros((1, len(rows)), np.int32), rows[None] + 1)
            error = exact.relative_error(dense.rows(name, run([*operands[:-1], ready(q, k, v)]), rows), truth)
            return Row(**{**vars(row), "timing": timing, "error": error, "tolerance": exact.TOLERANCE[of.dtype]})

        report.attempt(make, row)


def bench_torch(report: Report, of: Problem, names: list[str], samples: int) -> None:
    """PyTorch's attention over the same sequence: the same rule, or dense causal. One process each."""
    length, itemsize = of.layout.length, jnp.dtype(of.dtype).itemsize
    kept, causal = attention_pairs(of.layout, of.rule)
    nbytes = counts.attention_bytes(length, length, of.heads, of.kv_heads, of.width, itemsize)
    rules = {"natural": masks.tokens(of.layout, of.rule), "streams": masks.tokens(of.layout, of.rule, in_streams=True)}
    for name in names:
        computes, seen = ("dense causal", causal) if name == "sdpa" else ("visible pairs, one call", kept)
        flops = counts.attention_flops(seen, of.heads, of.width)
        row = Row(of.case, pytorch.WHAT[name], computes, flops, nbytes, kind=BASELINE)

        def make(name=name, row=row) -> Row:
            case = pytorch.Case(name, 1, length, length, of.heads, of.kv_heads, of.width, causal=name == "sdpa")
            [found] = pytorch.measure(
                [case],
                python=options.TORCH_PYTHON.value,
                dtype=of.dtype,
                samples=samples,
                seed=options.SEED.value,
                limit_s=min(report.left_s, _TORCH_LIMIT_S),
                **rules,
                window=masks.window(of.rule),
            )
            if not found.seconds:
                return Row(**{**vars(row), "note": f"not run: {found.note}"})
            return Row(
                **{
                    **vars(row),
                    "timing": Timing(*found.seconds),
                    "error": found.error,
                    "note": found.note,
                    "tolerance": exact.TOLERANCE[of.dtype],
                }
            )

        report.attempt(make, row)


def bench(report: Report, device: Any) -> None:
    large, samples = machine.is_accelerator(device), session.samples(device)
    names = options.names(options.BASELINES, [*dense.NAMES, *pytorch.NAMES], [*dense.NAMES, *pytorch.NAMES])
    for frames in options.integers(options.FRAMES, [256, 600, 2048, 10000] if large else [96]):
        of = problem(
            frames,
            visual=options.VISUAL.value,
            stride=options.given(_STRIDE_GROUPS, 64 if large else 8),
            heads=options.given(options.HEADS, 28 if large else 2),
            kv_heads=options.given(options.KV_HEADS, 4 if large else 1),
            width=options.given(options.WIDTH, 128),
            dtype=options.DTYPE.value,
        )
        if of.heads % of.kv_heads:
            raise options.UsageError(f"{of.heads} query heads cannot share {of.kv_heads} key heads evenly")
        kept, causal = attention_pairs(of.layout, of.rule)
        print(f"{of.case}: {kept / causal:.3f} of causal pairs are visible", file=sys.stderr)
        bench_ours(report, device, of, samples)
        bench_dense(report, device, of, [name for name in names if name in dense.NAMES], samples)
        bench_torch(report, of, [name for name in names if name in pytorch.NAMES], samples)


def main(_: list[str]) -> None:
    session.run("attention", bench)


if __name__ == "__main__":
    app.run(main)
