"""Whole steps of asking through a language model of random weights: first token, further tokens, many questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from experiments.bench import costs, kernels, measure, problems
from experiments.bench.machine import Session
from experiments.bench.measure import Timing
from experiments.bench.report import Row, joined
from pallas_kernels.attention import Kernel
from vxl2_jax import decode, relevance
from vxl2_jax.buckets import bucket
from vxl2_jax.cache import views
from vxl2_jax.config import ModelConfig
from vxl2_jax.memory import VideoMemory
from vxl2_jax.relevance import selection
from vxl2_jax.sampling import Sampling


@dataclass(frozen=True)
class Asking:
    """A model, a memory and questions: ids int32 [B, N] (padded), `count` real ones each."""

    config: ModelConfig
    params: Any
    memory: VideoMemory
    ids: np.ndarray
    count: int
    chunk_size: int
    top_k: int

    def view(self, cache: str, kernel: Kernel, questions: int = 1) -> views.KVCacheView:
        """What the first questions read. Mixed: after a relevance pass and a selection of chunks for each."""
        if cache == "dense":
            return views.dense_view(self.memory, kernel, questions)
        request = relevance.ScorerInputs(
            self.params, self.config, self.memory, *self.first(questions), self.chunk_size, kernel=kernel
        )
        chosen = [selection.top_chunks(scores, self.top_k) for scores in relevance.repositioned_attention(request)]
        dense = np.stack([selection.dense_chunks(request.chunks, one) for one in chosen])
        return views.mixed_view(self.memory, self.chunk_size, dense, kernel)

    def first(self, questions: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, count) of the first questions."""
        return self.ids[:questions], np.full(questions, self.count, np.int32)

    def answer(self, base: views.KVCacheView, kernel: Kernel, tokens: int, questions: int = 1) -> Any:
        """Answers of `tokens` tokens."""
        sampling = Sampling(np.float32(0), np.float32(1))
        inputs = (self.params, self.config, base, *self.first(questions), sampling, jax.random.key(0))
        return decode.generate(*inputs, max_new=tokens, kernel=kernel)

    def keys(self, cache: str) -> int:
        """Keys that a question reads."""
        memory, layout = self.memory, self.memory.layout
        if cache == "dense":
            return layout.length
        # The number of selected chunks is known, which ones is not; all but the last have the same length.
        chunks = layout.chunks(self.chunk_size)
        dense = selection.dense_chunks(chunks, np.arange(2, 2 + min(self.top_k, max(chunks - 2, 0))))
        per_group = np.where(
            dense[layout.chunk_of_group(self.chunk_size)], layout.visual, layout.pooled(memory.compression)
        )
        return layout.global_length + int(per_group.sum())

    def work(self, keys: int, rows: int) -> np.ndarray:
        """Least (FLOPs, bytes) of one pass of `rows` tokens over `keys` keys, with the logits of one token."""
        lm, language = self.config.language, self.params["language"]
        linear = sum(leaf.size for leaf in jax.tree.leaves(language["layers"]))
        head, itemsize = lm.width * lm.vocabulary, language["embed"].dtype.itemsize
        attention = lm.layers * costs.attention_flops(rows * keys, lm.heads, lm.head_width)
        cache = lm.layers * costs.attention_bytes(rows, keys, lm.heads, lm.kv_heads, lm.head_width, itemsize)
        return np.asarray([2 * (linear * rows + head) + attention, (linear + head) * itemsize + cache], np.float64)


def run(session: Session, config: ModelConfig, memory: VideoMemory, *, count: int, questions: int) -> None:
    """Rows per kernel and kind of cache, for random questions of `count` tokens."""
    args = session.args
    ids = np.zeros((questions, bucket(count, minimum=64)), np.int32)
    ids[:, :count] = np.random.default_rng(args.seed).integers(0, config.language.vocabulary, (questions, count))
    params = problems.weights(config, ["language"], args.dtype, args.seed)
    asking = Asking(config, params, memory, ids, count, args.chunk_size, args.top_k)
    for name, make in kernels.candidates(session, config.language.head_width, tiles=False):
        for cache in ("mixed", "dense"):
            for row, measured in _rows(asking, cache, args.new_tokens, questions, min(args.samples, 3)):

                def timed(measured=measured, make=make, row=row) -> dict[str, Any]:
                    kernel = make()
                    return {"timing": measured(kernel), "note": joined(row.note, kernels.note(kernel))}

                session.report.attempt(replace(row, name=name), timed)


def _rows(
    asking: Asking, cache: str, new: int, questions: int, samples: int
) -> list[tuple[Row, Callable[[Kernel], Timing]]]:
    """Rows without timings, and functions that measure these."""
    memory, keys = asking.memory, asking.keys(cache)
    token, first = asking.work(keys, 1), asking.work(keys, asking.count)
    if cache == "mixed":
        first = first + asking.work(memory.sparse_length, asking.count)

    def row(computes: str, work: np.ndarray, note: str = "") -> Row:
        return Row(f"{memory.frames} frames, {cache}, model", "", computes, float(work[0]), float(work[1]), note=note)

    def clock(work: Callable[[Kernel], Any]) -> Callable[[Kernel], Timing]:
        return lambda kernel: measure.clock(work, kernel, samples=samples, budget_s=60)

    def ask(tokens: int, questions: int = 1) -> Callable[[Kernel], Any]:
        return lambda kernel: asking.answer(asking.view(cache, kernel, questions), kernel, tokens, questions)

    def further(kernel: Kernel) -> Timing:
        base = asking.view(cache, kernel)
        whole, one = (clock(lambda kernel, n=n: asking.answer(base, kernel, n))(kernel) for n in (new, 1))
        rounds = tuple((w - o) / (new - 1) for w, o in zip(whole.rounds, one.rounds, strict=True))
        if min(rounds) <= 0:
            raise ArithmeticError("further tokens take less than the noise of the first: ask for more of them")
        return Timing(rounds)

    passes = "relevance pass, selection, question pass" if cache == "mixed" else "question pass"
    rows = [
        (row(f"first token: {passes}", first), clock(ask(1))),
        (row("each further token", token, f"{new} tokens less the first"), further),
    ]
    if cache == "mixed":
        one, many = first + (new - 1) * token, f"{questions} questions × {new} tokens"
        rows += [
            (row(f"1 question × {new} tokens", one), clock(ask(new))),
            # Weights and keys are read once for a batch, as for one question.
            (row(many, one * (questions, 1), "in one batch"), clock(ask(new, questions))),
            (
                row(many, questions * one, "one after the other"),
                clock(lambda kernel: [ask(new)(kernel) for _ in range(questions)]),
            ),
        ]
    return rows
