"""Whole steps of asking through a language model of random weights, clocked from the host around what `ask` calls."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import numpy as np

from experiments.bench import counts, kernels, weights
from experiments.bench.measure import Timing
from experiments.bench.report import Report, Row
from pallas_kernels.attention import Kernel
from vxl2_jax import decode, relevance
from vxl2_jax.buckets import bucket
from vxl2_jax.cache import views
from vxl2_jax.config import ModelConfig
from vxl2_jax.memory import VideoMemory
from vxl2_jax.relevance import selection


@dataclass(frozen=True)
class Asking:
    """A model, a memory and questions of `ids` [B, N] (padded), `count` real ones each; answers of `new` tokens."""

    config: ModelConfig
    params: Any
    memory: VideoMemory
    ids: np.ndarray
    count: int
    new: int
    chunk_size: int
    top_k: int

    @classmethod
    def draw(
        cls, config: ModelConfig, memory: VideoMemory, *, questions: int, count: int, seed: int, dtype: str, **more: int
    ) -> Asking:
        """Random weights and random questions."""
        ids = np.zeros((questions, bucket(count, minimum=64)), np.int32)
        ids[:, :count] = np.random.default_rng(seed).integers(0, config.language.vocabulary, (questions, count))
        return cls(config, weights.draw(config, ["language"], dtype, seed), memory, ids, count, **more)

    def dense_base(self, kernel: Kernel, questions: int = 1) -> views.KVCacheView:
        return views.dense_view(self.memory, kernel, questions)

    def mixed_base(self, kernel: Kernel, questions: int = 1) -> views.KVCacheView:
        """The relevance pass of the first questions, the selection, and the caches it gives."""
        request = relevance.ScorerInputs(
            self.params, self.config, self.memory, *self.first(questions), self.chunk_size, kernel=kernel
        )
        chosen = [selection.top_chunks(scores, self.top_k) for scores in relevance.repositioned_attention(request)]
        dense = np.stack([selection.dense_chunks(request.chunks, one) for one in chosen])
        return views.mixed_view(self.memory, self.chunk_size, dense, kernel)

    def first(self, questions: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, count) of the first questions."""
        return self.ids[:questions], np.full(questions, self.count, np.int32)

    def answer(self, base: views.KVCacheView, kernel: Kernel, tokens: int, questions: int = 1) -> None:
        sampling = decode.Sampling(np.float32(0), np.float32(1))
        jax.block_until_ready(
            decode.generate(
                self.params,
                self.config,
                base,
                *self.first(questions),
                sampling,
                jax.random.key(0),
                max_new=tokens,
                kernel=kernel,
            )
        )

    def work(self, keys: int, rows: int) -> np.ndarray:
        """Least (operations, bytes) of one pass of `rows` tokens over `keys` keys, logits of one token included."""
        lm, language = self.config.language, self.params["language"]
        linear = sum(leaf.size for leaf in jax.tree.leaves(language["layers"]))
        head = lm.width * lm.vocabulary
        itemsize = language["embed"].dtype.itemsize
        attention = lm.layers * counts.attention_flops(rows * keys, lm.heads, lm.head_width)
        cache = lm.layers * counts.attention_bytes(rows, keys, lm.heads, lm.kv_heads, lm.head_width, itemsize)
        return np.asarray([2 * (linear * rows + head) + attention, (linear + head) * itemsize + cache], np.float64)


def clock(work: Callable[[], Any], samples: int) -> Timing:
    """Seconds by the host's clock; the first time compiles and is not counted."""

    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    once()
    return Timing(*(median(once() for _ in range(samples)) for _ in "ab"))


def bench(report: Report, device: Any, asking: Asking, *, questions: int, samples: int, dtype: str) -> None:
    """First token, each further token, and many questions: rows per kernel."""
    for name in kernels.chosen(device):

        def kernel(name=name):
            return kernels.kernel(name, None, width=asking.config.language.head_width, dtype=dtype, device=device)

        for kind in ("mixed", "dense"):
            for row, measured in _rows(asking, name, kind, kernel, questions, samples):

                def timed(row=row, measured=measured, kernel=kernel):
                    return dataclasses.replace(row, timing=measured(), note=_note(row, kernel()))

                report.attempt(timed, row)


def _note(row: Row, kernel: Kernel) -> str:
    return "; ".join(filter(None, (row.note, kernels.remark(kernel))))


def _rows(
    asking: Asking, name: str, kind: str, kernel: Callable[[], Kernel], questions: int, samples: int
) -> list[tuple[Row, Callable[[], Timing]]]:
    """Rows without their timings, and how to get these."""
    memory, new = asking.memory, asking.new
    make = {"mixed": asking.mixed_base, "dense": asking.dense_base}[kind]
    layout = memory.layout
    if kind == "dense":
        keys = layout.length
    else:
        # How many chunks are chosen is known, which ones is not; all are alike but the last.
        chunks = layout.chunks(asking.chunk_size)
        dense = selection.dense_chunks(chunks, np.arange(2, 2 + min(asking.top_k, max(chunks - 2, 0))))
        group_dense = dense[layout.chunk_of_group(asking.chunk_size)]
        per_group = np.where(group_dense, layout.visual, layout.pooled(memory.compression))
        keys = layout.global_length + int(per_group.sum())
    question, token = asking.work(keys, asking.count), asking.work(keys, 1)
    first = question + (asking.work(memory.sparse_length, asking.count) if kind == "mixed" else 0)
    case = f"{memory.frames} frames, {kind}, model"
    what = "relevance pass, selection, question pass" if kind == "mixed" else "question pass"

    def row(computes, work, note=""):
        return Row(case, name, computes, float(work[0]), float(work[1]), note=note)

    def further() -> Timing:
        base = make(kernel())
        whole, one = (clock(lambda n=n: asking.answer(base, kernel(), n), samples) for n in (new, 1))
        found = Timing(*((w - o) / (new - 1) for w, o in zip(whole, one, strict=True)))
        if min(found) <= 0:
            raise ArithmeticError("the further tokens are lost in the noise of the first: ask for more of them")
        return found

    def ask(tokens: int, questions: int = 1) -> None:
        found = kernel()
        asking.answer(make(found, questions), found, tokens, questions)

    rows = [
        (row(f"first token: {what}", first), lambda: clock(lambda: ask(1), samples)),
        (row("each further token", token, f"{new} tokens less the first"), further),
    ]
    if kind == "mixed":
        one = first + (new - 1) * token
        rows += [
            (row(f"1 question × {new} tokens", one), lambda: clock(lambda: ask(new), samples)),
            (
                # The least bytes of a batch: weights and keys once, as for one question.
                row(f"{questions} questions × {new} tokens", one * (questions, 1), "in one batch"),
                lambda: clock(lambda: ask(new, questions), samples),
            ),
            (
                row(f"{questions} questions × {new} tokens", questions * one, "one after the other"),
                lambda: clock(lambda: [ask(new) for _ in range(questions)], samples),
            ),
        ]
    return rows
