"""Asking a memory, the attention of it: caches read in place, against reading them assembled and plainly.

examples:
  python -m experiments.bench decoding                                  # a 10,000-frame memory on an accelerator
  python -m experiments.bench decoding --frames 600,10000 --backends hopper,ampere --model --out runs/bench
  python -m experiments.bench decoding --backends hopper --tiles "64,128,2;64,128,3;64,64,4" --baselines none

Per kind of cache (mixed: chunks of 4 groups, the best 4 dense, the others pooled by 4; dense; sparse) and per number of
rows (1, a step of decoding; 68, a question; 16, a short question) one step through all layers, exactly as decoding reads
them. The note has the time of one layer. Errors are relative, of one layer, against float32.

Baselines: xla, cudnn (jax.nn.dot_product_attention over a plain cache of the same length), sdpa (PyTorch); with any of
them `assemble`: making that plain cache of a mixture, once per question.
--model: also whole steps through a language model of random weights: first token (relevance pass, selection, question
pass), each further token, and 16 questions.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import alternatives, arguments, kernels, machine, measure, problems
from experiments.bench.cases import model_steps
from experiments.bench.machine import Session, UsageError
from experiments.bench.measure import TOLERANCE, evenly, reference_attention, relative_error
from experiments.bench.report import BASELINE, Row, joined
from experiments.parity import assembled
from pallas_kernels.attention import Kernel, KVCache
from vxl2_jax import decode
from vxl2_jax.config import ModelConfig, video_xl_2
from vxl2_jax.memory import VideoMemory
from vxl2_jax.models.rope import rotate, rotation

QUESTION, QUESTIONS = 68, 16  # tokens of a question; questions of a batch
DEFAULTS = {
    "frames": ([10000], [128]),
    "rows": ([1, QUESTION, QUESTIONS], [1]),
    "visual": (144, 16),
    "heads": (28, 2),
    "kv_heads": (4, 1),
    "width": (128, 128),
}
BASELINES = ["xla", "cudnn", "sdpa"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_language(parser)
    add, caches = parser.add_argument, ",".join(problems.CACHES)
    add("--model", action="store_true", help="also whole steps, through a language model of random weights")
    add(
        "--layers",
        type=arguments.positive,
        metavar="N",
        help="layers of memory and model (default: as many of 28 as fit; 2 on a CPU)",
    )
    add("--chunk_size", type=arguments.positive, default=4, metavar="N", help="groups per bi-level chunk")
    add("--top_k", type=int, default=4, metavar="K", help="interior chunks loaded dense")
    add(
        "--compression",
        type=arguments.positive,
        default=4,
        metavar="N",
        help="visual tokens pooled into one in sparse chunks",
    )
    add(
        "--caches",
        type=arguments.names(problems.CACHES),
        default=caches,
        metavar="NAMES",
        help=f"of {caches} (default: all)",
    )
    add("--rows", type=arguments.numbers, metavar="N,N", help="query rows at a time")
    add(
        "--new_tokens",
        type=arguments.positive,
        default=32,
        metavar="N",
        help="tokens of an answer, with --model; at least 2",
    )


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for arguments that are inconsistent."""
    if args.heads % args.kv_heads:
        raise UsageError(f"{args.heads} query heads cannot share {args.kv_heads} key heads evenly")
    if args.new_tokens < 2:
        raise UsageError("--new_tokens: the time of a further token needs at least 2")


def run(session: Session) -> None:
    args = session.args
    for frames in args.frames:
        layout = problems.video_layout(frames, args.visual)
        config = model_config(session, layout.length)
        stride = 64 if session.accelerator else 4
        memory = problems.random_memory(
            config.language, layout, stride=stride, compression=args.compression, dtype=args.dtype, seed=args.seed
        )
        for cache in args.caches:
            chosen = problems.dense_chunks(layout, cache, args.chunk_size, args.top_k, args.seed)
            plan = problems.slots(memory, chosen, args.chunk_size)
            for rows in args.rows:
                reading = Reading(config, memory, cache, chosen, plan, rows)
                _bench_reading(session, reading)
            if cache == "mixed" and args.baselines:
                row = Row(f"{frames} frames, mixed", "assemble", "the plain cache, once per question", kind=BASELINE)
                # Every slot of all layers is read and written.
                row = replace(row, bytes=2 * 2 * len(plan.store) * problems.nbytes(memory.sparse.k[:, :, :1]))
                session.report.attempt(row, lambda memory=memory, plan=plan: _assembling(session, memory, plan))
        if args.model:
            model_steps.run(session, config, memory, count=QUESTION, questions=QUESTIONS)


def model_config(session: Session, tokens: int) -> ModelConfig:
    """The released model with as many layers as fit with memories of `tokens` tokens; on a CPU a very small one."""
    args, config = session.args, video_xl_2()
    small = {} if session.accelerator else {"width": 64, "mlp": 128, "vocabulary": 512}
    lm = replace(config.language, heads=args.heads, kv_heads=args.kv_heads, head_width=args.width, **small)
    layers = args.layers or (lm.layers if session.accelerator else 2)
    if session.accelerator and not args.layers:
        cache = 2 * 1.5 * tokens * lm.kv_heads * lm.head_width * 2  # of a layer, both levels and a margin
        layer = 2 * lm.width * (3 * lm.mlp + 2 * lm.width) if args.model else 0
        fixed = 6 * cache + (4 * lm.width * lm.vocabulary if args.model else 0)  # plain caches, float32 reference
        room = 0.9 * machine.memory_bytes(session.device) - fixed
        layers = max(1, min(layers, int(room / (cache + layer))))
    # No token stops an answer: every run has the same number of steps.
    return replace(config, language=replace(lm, layers=layers), stop_tokens=(-1,))


@dataclass(frozen=True)
class Reading:
    """One kind of cache read by a number of rows. chosen: see `problems.dense_chunks`; plan: the cache slot by slot."""

    config: ModelConfig
    memory: VideoMemory
    cache: str
    chosen: np.ndarray | None
    plan: assembled.MixedPlan
    rows: int

    @property
    def keys(self) -> int:
        return len(self.plan.store)

    def plain(self) -> alternatives.Attention:
        """The same attention of one layer over a plain cache."""
        lm, dtype = self.config.language, str(self.memory.sparse.k.dtype)
        return alternatives.Attention(1, self.rows, self.keys, lm.heads, lm.kv_heads, lm.head_width, dtype)


def _bench_reading(session: Session, reading: Reading) -> None:
    lm, plain, rows = reading.config.language, reading.plain(), reading.rows
    case = f"{reading.memory.frames} frames, {reading.cache}, {rows} row{'s' * (rows > 1)}"
    work = (lm.layers * plain.flops, lm.layers * plain.bytes)
    row = Row(case, "", f"{lm.layers} layers, {reading.keys} keys", *work)
    for name, make in kernels.candidates(session, lm.head_width):
        session.report.attempt(replace(row, name=name), lambda make=make: _ours(session, reading, make()))
    for name in session.args.baselines:
        alternatives.add(session, name, plain, row, calls=lm.layers)


def _ours(session: Session, reading: Reading, kernel: Kernel) -> dict[str, Any]:
    """Time steps through all layers."""
    args, config, lm, rows = session.args, reading.config, reading.config.language, reading.rows
    base = problems.memory_view(reading.memory, reading.chosen, args.chunk_size, kernel)
    keys = jax.random.split(jax.random.key(args.seed), 3)
    capacity = decode.empty_tail(config, base, 1, rows).k.shape[2]
    tail = problems.stream(keys[0], lm.layers, lm.kv_heads, capacity, lm.head_width, args.dtype)
    q = jax.random.normal(keys[1], (rows, lm.heads, lm.head_width), args.dtype)

    def step(number: jax.Array, first: tuple, streams: tuple[KVCache, ...], tail: KVCache) -> jax.Array:
        q, base = first
        read = decode.reader(
            kernel, config, base._replace(streams=streams), tail, jnp.zeros(1, jnp.int32), jnp.int32(0), rows
        )

        def one(layer: jax.Array, carry: tuple) -> tuple:
            q = measure.touched(*carry)
            return q, read(q[None], tail, (layer + number) % lm.layers)[0][0]

        return jax.lax.fori_loop(0, lm.layers, one, (q, jnp.zeros_like(q)))[1]

    plain = reading.plain()
    floor_s = lm.layers * session.report.ceilings.floor_s(plain.flops, plain.bytes)
    count = measure.turns(floor_s, session.accelerator)
    timed, last = measure.repeated(step, count), (lm.layers - 1 + count - 1) % lm.layers

    def sets(q: jax.Array) -> list[tuple]:
        return [((q, base._replace(streams=())), base.streams, tail)]

    timing = measure.clock(timed, sets(q), samples=args.samples, calls=count)
    # The executable that was timed, on other queries; expected: in float32 from the memory's two levels.
    fresh = jax.random.normal(keys[2], q.shape, q.dtype)
    out = timed(sets(fresh))
    position = base.position + jnp.arange(rows)
    turned = rotate(fresh, *(t[:, None] for t in rotation(position, lm.head_width, lm.rope_theta)))
    picked = evenly(rows, 16)
    cache = problems.gathered(reading.memory, reading.plan, last)
    own = jax.tree.map(lambda a: a[last : last + 1].astype(jnp.float32), tail)
    k_end = np.stack([np.full(len(picked), reading.keys, np.int32), picked + 1])
    expected = reference_attention(turned[picked], (cache, own), np.zeros_like(k_end), k_end)
    note = joined(f"one layer {1e6 * timing.seconds / lm.layers:.1f} µs", kernels.note(kernel))
    error = relative_error(out[picked], expected)
    return {"timing": timing, "error": error, "tolerance": TOLERANCE[args.dtype], "note": note}


def _assembling(session: Session, memory: VideoMemory, plan: assembled.MixedPlan) -> dict[str, Any]:
    return {"timing": measure.clock(lambda m: assembled.assemble(m, plan), memory, samples=session.args.samples)}
