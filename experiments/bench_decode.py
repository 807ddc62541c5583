"""Asking a memory, the attention of it: caches read as runs in place, against reading them assembled and plainly.

    python -m experiments.bench_decode                                    # a 10,000-frame memory on an accelerator
    python -m experiments.bench_decode --frames 600,10000 --backends hopper,ampere --model --out runs/bench
    python -m experiments.bench_decode --backends hopper --tiles "64,128,2;64,128,3;64,64,4" --baselines none

Per kind of cache (mixed: chunks of 4 groups, the best 4 dense, the others pooled by 4; dense; sparse) and per number of
rows (1, a step of decoding; 68, a question; 16, a question of 16 tokens) one step through all layers,
exactly as decoding reads them: queries turned per run, items, merging. The time of one layer is in the note. The floor
is bytes of keys and values over the copy measured in the same run. Errors are relative, of one layer against float32.

Baselines: xla, cudnn (jax.nn.dot_product_attention over a plain cache of the same length), sdpa (PyTorch); `assemble`
is what it costs to make that plain cache of a mixture, once per question.
With --model, whole steps through a language model of random weights: first token (relevance pass, selection, question
pass), each further token, and 16 questions.

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

from experiments.bench import (
    counts,
    dense,
    exact,
    kernels,
    layouts,
    machine,
    measure,
    memories,
    options,
    pytorch,
    whole_steps,
)  # fmt: skip
from experiments.bench.measure import Timing
from experiments.bench.report import BASELINE, Report, Row
from experiments.parity import assembled
from pallas_kernels.attention import Kernel, KVCache
from vxl2_jax import decode
from vxl2_jax.config import LanguageConfig, ModelConfig, video_xl_2
from vxl2_jax.memory import VideoMemory
from vxl2_jax.models.rope import rotate, rotation

_MODEL = flags.DEFINE_boolean("model", False, "Also whole steps, through a language model of random weights.")
_LAYERS = flags.DEFINE_integer("layers", None, "Layers of the memory and of the model.", lower_bound=1)
_CHUNK_SIZE = flags.DEFINE_integer("chunk_size", 4, "Groups per bi-level chunk.", lower_bound=1)
_TOP_K = flags.DEFINE_integer("top_k", 4, "Interior chunks loaded dense.", lower_bound=0)
_COMPRESSION = flags.DEFINE_integer("compression", 4, "Visual tokens pooled into one in sparse chunks.", lower_bound=1)
_KINDS = flags.DEFINE_list("kinds", None, f"Kinds of caches. Default: {', '.join(memories.KINDS)}.")
_ROWS = flags.DEFINE_list("rows", None, "Rows at a time. Default: 1, a step; 68, a question; 16, a short one.")
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 32, "Tokens of an answer, with --model.", lower_bound=2)
_QUESTION, _QUESTIONS, _TORCH_LIMIT_S = 68, 16, 300.0


def geometry(device: Any, tokens: int) -> ModelConfig:
    """The released model with as many of its layers as fit beside `tokens` tokens of each; on a CPU a very small one.
    Sizes by flags."""
    large, config = machine.is_accelerator(device), video_xl_2()
    lm = dataclasses.replace(
        config.language,
        layers=options.given(_LAYERS, 28 if large else 2),
        heads=options.given(options.HEADS, 28 if large else 2),
        kv_heads=options.given(options.KV_HEADS, 4 if large else 1),
        head_width=options.given(options.WIDTH, 128),
        **({} if large else {"width": 64, "mlp": 128, "vocabulary": 512}),
    )
    if lm.heads % lm.kv_heads:
        raise options.UsageError(f"{lm.heads} query heads cannot share {lm.kv_heads} key heads evenly")
    if large and _LAYERS.value is None:
        # Both levels, a little room, and of the model a layer's weights.
        cache = 2 * 1.5 * tokens * lm.kv_heads * lm.head_width * 2
        layer = 2 * lm.width * (3 * lm.mlp + 2 * lm.width) if _MODEL.value else 0
        fixed = 6 * cache + (4 * lm.width * lm.vocabulary if _MODEL.value else 0)  # plain caches, and the float32 truth
        room = 0.9 * machine.memory_bytes(device) - fixed
        lm = dataclasses.replace(lm, layers=max(1, min(lm.layers, int(room / (cache + layer)))))
    # No token stops an answer: every run has the same number of steps.
    return dataclasses.replace(config, language=lm, stop_tokens=(-1,))


def least(lm: LanguageConfig, keys: int, rows: int, itemsize: int) -> tuple[int, int]:
    """Operations and bytes of all layers."""
    flops = counts.attention_flops(rows * keys, lm.heads, lm.head_width)
    nbytes = counts.attention_bytes(rows, keys, lm.heads, lm.kv_heads, lm.head_width, itemsize)
    return lm.layers * flops, lm.layers * nbytes


@dataclasses.dataclass(frozen=True)
class Reading:
    """One kind of cache read by one number of rows."""

    config: ModelConfig
    memory: VideoMemory
    kind: str
    chosen: np.ndarray | None
    rows: int

    @property
    def keys(self) -> int:
        """Keys of the cache."""
        if self.chosen is None:
            return self.memory.sparse_length
        return len(memories.plan(self.memory, self.chosen, _CHUNK_SIZE.value).store)

    @property
    def case(self) -> str:
        return f"{self.memory.frames} frames, {self.kind}, {self.rows} row{'s' * (self.rows > 1)}"

    def row(self, name: str, **more: Any) -> Row:
        itemsize = self.memory.sparse.k.dtype.itemsize
        flops, nbytes = least(self.config.language, self.keys, self.rows, itemsize)
        return Row(self.case, name, f"{self.config.language.layers} layers, {self.keys} keys", flops, nbytes, **more)

    def done(self, row: Row, timing: Timing, error: float, note: str, dtype: str) -> Row:
        layer = f"one layer {1e6 * timing.seconds / self.config.language.layers:.1f} µs"
        note = "; ".join(filter(None, (layer, note)))
        return dataclasses.replace(row, timing=timing, error=error, tolerance=exact.TOLERANCE[dtype], note=note)


def ours(reading: Reading, row: Row, kernel: Kernel, report: Report, samples: int, dtype: str) -> Row:
    """Time steps through all layers."""
    config, lm, rows = reading.config, reading.config.language, reading.rows
    base = memories.base(reading.memory, reading.chosen, _CHUNK_SIZE.value, kernel)
    keys = jax.random.split(jax.random.key(options.SEED.value), 3)
    empty = decode.empty_tail(config, base, 1, rows)
    tail = layouts.stream(keys[0], lm.layers, lm.kv_heads, empty.k.shape[2], lm.head_width, dtype)
    q = jax.random.normal(keys[1], (rows, lm.heads, lm.head_width), dtype)
    slots = jnp.arange(rows)

    def step(number: jax.Array, first: tuple, streams: tuple[KVCache, ...], tail: KVCache) -> jax.Array:
        q, base = first
        base = base._replace(streams=streams)
        # What decoding itself reads with, private as it is: anything else would be another program.
        read = decode.reader(kernel, config, base, tail, jnp.zeros(1, jnp.int32), jnp.int32(0), rows)

        def one(layer: jax.Array, carry: tuple) -> tuple:
            q = measure.touched(*carry)
            return q, read(q[None], tail, (layer + number) % lm.layers)[0][0]

        return jax.lax.fori_loop(0, lm.layers, one, (q, jnp.zeros_like(q)))[1]

    count = measure.turns(report.ceilings.floor_s(row.flops, row.bytes), machine.is_accelerator(jax.devices()[0]))
    run, last = measure.repeated(step, count), (lm.layers - 1 + count - 1) % lm.layers

    def sets(q):
        return [((q, base._replace(streams=())), base.streams, tail)]

    timing = measure.clock(run, sets(q), samples=samples, calls=count)
    # What was timed, on other queries, and the truth in float32 from the memory's two levels.
    fresh = jax.random.normal(keys[2], q.shape, q.dtype)
    out = run(sets(fresh))
    turned = rotate(fresh, *(t[:, None] for t in rotation(base.position + slots, lm.head_width, lm.rope_theta)))
    picked = np.unique(np.linspace(0, rows - 1, min(rows, 16)).round().astype(np.int32))
    plain = memories.unrounded(reading.memory, memories.plan(reading.memory, reading.chosen, _CHUNK_SIZE.value), last)
    own = KVCache(*(a[last : last + 1].astype(jnp.float32) for a in tail))
    k_end = np.stack([np.full(len(picked), reading.keys, np.int32), picked + 1])
    truth = exact.attend(turned[picked], (plain, own), np.zeros_like(k_end), k_end)
    return reading.done(row, timing, exact.relative_error(out[picked], truth), kernels.remark(kernel), dtype)


def bench_ours(report: Report, device: Any, reading: Reading, samples: int, dtype: str) -> None:
    lm = reading.config.language
    for name in kernels.chosen(device):
        for tiles in [None] if name == "reference" else options.tile_candidates():
            row = reading.row(kernels.label(name, tiles))

            def make(name=name, tiles=tiles, row=row) -> Row:
                kernel = kernels.kernel(name, tiles, width=lm.head_width, dtype=dtype, device=device)
                return ours(reading, row, kernel, report, samples, dtype)

            report.attempt(make, row)


def bench_plain(report: Report, device: Any, reading: Reading, names: list[str], samples: int, dtype: str) -> None:
    """Libraries over a plain cache of the same length: some layers in turns, as many times as there are layers."""
    lm, keys, rows = reading.config.language, reading.keys, reading.rows

    def row_of(what):
        return reading.row(what, kind=BASELINE)

    shape = {"batch": 1, "queries": rows, "keys": keys, "heads": lm.heads}
    one = 2 * keys * lm.kv_heads * lm.head_width * jnp.dtype(dtype).itemsize
    for name in (n for n in names if n in dense.NAMES):
        row = row_of(dense.WHAT[name])
        if why := dense.refusal(name, device, **shape, width=lm.head_width, causal=False):
            report.add(dataclasses.replace(row, note=f"not run: {why}"))
            continue

        def make(name=name, row=row) -> Row:
            number = max(2, measure.sets_beyond_cache(one)) if machine.is_accelerator(device) else 1

            def normal(n, *shape):
                return layouts.normal(jax.random.key(n), (*shape, lm.head_width), dtype)[None]

            def cache(n):
                return (normal(n + 100, keys, lm.kv_heads), normal(n + 200, keys, lm.kv_heads))

            sets = [(normal(n, rows, lm.heads), *cache(n)) for n in range(number)]
            call = partial(dense.attend, name, count=rows, causal=False)
            floor_s = number * report.ceilings.floor_s(row.flops, row.bytes) / lm.layers
            count = measure.turns(floor_s, machine.is_accelerator(device))
            run = measure.repeated(lambda _, *qkv: call(*qkv), count)
            timing = measure.clock(run, sets, samples=samples, calls=count * number).over(1 / lm.layers)
            q, k, v = normal(7, rows, lm.heads), *sets[-1][1:]
            stream = KVCache(*(jnp.swapaxes(a, 1, 2) for a in (k, v)))
            k_end = np.full((1, rows), keys, np.int32)
            truth = exact.attend(q[0], (stream,), np.zeros_like(k_end), k_end)
            error = exact.relative_error(run([*sets[:-1], (q, k, v)])[0], truth)
            return reading.done(row, timing, error, f"{number} layers in turns", dtype)

        report.attempt(make, row)
    if "sdpa" in names:
        row = row_of(pytorch.WHAT["sdpa"])

        def make_torch() -> Row:
            case = pytorch.Case("sdpa", 1, rows, keys, lm.heads, lm.kv_heads, lm.head_width)
            [found] = pytorch.measure(
                [case],
                python=options.TORCH_PYTHON.value,
                dtype=dtype,
                samples=samples,
                seed=options.SEED.value,
                limit_s=min(report.left_s, _TORCH_LIMIT_S),
            )
            if not found.seconds:
                return dataclasses.replace(row, note=f"not run: {found.note}")
            return reading.done(row, Timing(*found.seconds).over(1 / lm.layers), found.error, found.note, dtype)

        report.attempt(make_torch, row)


def bench_assembling(report: Report, device: Any, reading: Reading, samples: int) -> None:
    """What the plain cache of a mixture costs: every slot read and written, in all layers, once per question."""
    memory = reading.memory
    plan = memories.plan(memory, reading.chosen, _CHUNK_SIZE.value)
    nbytes = 2 * 2 * reading.keys * layouts.size((memory.sparse.k[:, :, :1],))
    case = f"{memory.frames} frames, {reading.kind}"
    row = Row(case, "assemble", "the plain cache, once per question", 0, nbytes, kind=BASELINE)

    def timing():
        return measure.clock(lambda m: assembled.assemble(m, plan), memory, samples=samples)

    report.attempt(lambda: dataclasses.replace(row, timing=timing()), row)


def bench(report: Report, device: Any) -> None:
    large, samples, dtype = machine.is_accelerator(device), session.samples(device), options.DTYPE.value
    names = options.names(options.BASELINES, ["xla", "cudnn", "sdpa"], ["xla", "cudnn", "sdpa"])
    for frames in options.integers(options.FRAMES, [10000] if large else [128]):
        layout = layouts.video(frames, options.VISUAL.value if large else min(options.VISUAL.value, 16))
        config = geometry(device, layout.length)
        memory = memories.remember(
            config.language,
            layout,
            stride=64 if large else 4,
            compression=_COMPRESSION.value,
            dtype=dtype,
            key=jax.random.key(options.SEED.value),
        )
        for kind in options.names(_KINDS, [*memories.KINDS], [*memories.KINDS]):
            chosen = memories.dense_chunks(layout, kind, _CHUNK_SIZE.value, _TOP_K.value, options.SEED.value)
            for rows in options.integers(_ROWS, [1, _QUESTION, _QUESTIONS] if large else [1]):
                reading = Reading(config, memory, kind, chosen, rows)
                bench_ours(report, device, reading, samples, dtype)
                bench_plain(report, device, reading, names, samples, dtype)
            if kind == "mixed" and names:
                bench_assembling(report, device, reading, samples)
        if _MODEL.value:
            asking = whole_steps.Asking.draw(
                config,
                memory,
                questions=_QUESTIONS,
                count=_QUESTION,
                seed=options.SEED.value,
                dtype=dtype,
                new=_NEW_TOKENS.value,
                chunk_size=_CHUNK_SIZE.value,
                top_k=_TOP_K.value,
            )
            whole_steps.bench(report, device, asking, questions=_QUESTIONS, samples=min(samples, 3), dtype=dtype)


def main(_: list[str]) -> None:
    session.run("decode", bench)


if __name__ == "__main__":
    app.run(main)
