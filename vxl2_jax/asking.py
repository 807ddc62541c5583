"""Asking a memory, step by step: relevance → selection → mixed cache → decoding → answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

import jax
import numpy as np

from vxl2_jax import bases, decode, relevance, select
from vxl2_jax.buckets import bucket
from vxl2_jax.errors import RequestError
from vxl2_jax.memory import VideoMemory
from vxl2_jax.text import prompt
from vxl2_jax.timing import timed

if TYPE_CHECKING:
    from vxl2_jax.api import Model

Scores = Callable[[np.ndarray, VideoMemory], Sequence[float]]
ORACLE = "oracle:"


@dataclass(frozen=True)
class Chunk:
    """One bi-level chunk of the video: its time span in seconds, its relevance, how it was loaded."""

    start_s: float
    end_s: float
    score: float
    dense: bool


@dataclass(frozen=True)
class Answer:
    """What a question got. Of `cache_tokens_dense` key/value tokens, `cache_tokens` were loaded.

    `stopped` is False where max_new_tokens cut the answer off; `timings` holds seconds per stage.
    """

    question: str
    text: str
    tokens: tuple[int, ...]
    stopped: bool
    chunks: tuple[Chunk, ...]
    cache_tokens: int
    cache_tokens_dense: int
    timings: dict[str, float] = field(compare=False)

    @property
    def cache_ratio(self) -> float:
        """Key/value bytes loaded over those of the dense memory."""
        return self.cache_tokens / self.cache_tokens_dense


@dataclass(frozen=True)
class Options:
    """How to ask; see `api.Model.ask`."""

    relevance: str | Scores = "attention"
    top_k: int | None = 4
    chunk_size: int = 4
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Raise RequestError for a value out of range."""
        for name, least in (("top_k", 0), ("chunk_size", 1), ("max_new_tokens", 1), ("temperature", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RequestError(f"{name} must be at least {least}, not {value}")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        known = callable(self.relevance) or self.relevance in relevance.SCORERS or self.relevance.startswith(ORACLE)
        if not known:
            raise RequestError(
                f"unknown relevance {self.relevance!r}: choose {', '.join(relevance.SCORERS)}, {ORACLE}FILE or a function"
            )


def ask(model: Model, memory: VideoMemory, question: str, options: Options, history: Sequence[Answer]) -> Answer:
    """One question. Nothing of the memory changes, and nothing of an earlier question is felt save `history`."""
    options.check()
    if not question.strip():
        raise RequestError("the question is empty")
    if memory.model != model.fingerprint:
        raise RequestError(f"this memory was made by another model than {model.name}; watch the video again with it")
    timings: dict[str, float] = {}
    text = prompt.suffix_text(question, [(answer.question, answer.text) for answer in history])
    real = model.tokenizer.encode(text)
    ids = np.zeros(bucket(len(real), least=64), np.int32)
    ids[: len(real)] = real

    with timed(timings, "relevance"):
        request = relevance.Request(
            model.params, model.config, memory, ids, len(real), options.chunk_size, options.seed, model.kernel
        )
        memory, request, scores, chosen = _choose(request, question, options)
    dense = select.dense_chunks(request.chunks, chosen)

    with timed(timings, "load"):
        base = (
            bases.dense_base(memory, model.kernel) if dense.all()
            else bases.mixed_base(memory, request.chunk_size, dense, model.kernel)
        )
        jax.block_until_ready(base.streams)
    with timed(timings, "decode"):
        sampling = decode.Sampling(np.float32(options.temperature), np.float32(options.top_p))
        generated = decode.generate(
            model.params, model.config, base, ids, np.int32(len(real)), sampling, jax.random.key(options.seed),
            max_new=options.max_new_tokens, kernel=model.kernel,
        )
        tokens = tuple(int(t) for t in np.asarray(generated.tokens)[: int(generated.count)])
    chunks = tuple(
        Chunk(*memory.chunk_span(number, request.chunk_size), float(scores[number - 1]), bool(dense[number]))
        for number in range(1, request.chunks + 1)
    )
    return Answer(
        question=question, text=model.tokenizer.decode(tokens), tokens=tokens,
        stopped=tokens[-1] in model.config.stop_tokens, chunks=chunks,
        cache_tokens=int(base.position), cache_tokens_dense=memory.layout.length, timings=timings,
    )


def _choose(
    request: relevance.Request, question: str, options: Options
) -> tuple[VideoMemory, relevance.Request, np.ndarray, np.ndarray | None]:
    """(memory, request, scores [chunks], chosen chunk numbers or None for all dense); an oracle's own chunk
    size and compression replace the request's and the memory's."""
    if isinstance(options.relevance, str) and options.relevance.startswith(ORACLE):
        request, chosen = _consult(request, question, options.relevance.removeprefix(ORACLE))
        scores = np.zeros(request.chunks, np.float32)
        scores[(np.arange(1, request.chunks + 1) if chosen is None else chosen) - 1] = 1.0
        return request.memory, request, scores, chosen
    if callable(options.relevance):
        scores = np.asarray(options.relevance(request.ids[: request.count], request.memory), np.float32)
        if scores.shape != (request.chunks,):
            raise RequestError(f"the relevance function must give {request.chunks} scores, one a chunk, not shape {scores.shape}")
    else:
        scores = relevance.SCORERS[options.relevance](request)
    chosen = None if options.top_k is None else select.top_chunks(scores, options.top_k)
    return request.memory, request, scores, chosen


def _consult(request: relevance.Request, question: str, path: str) -> tuple[relevance.Request, np.ndarray | None]:
    """Replay an oracle file of the original for one question about the memory's video."""
    oracle, memory = select.read_oracle(path), request.memory
    keys = (f"{memory.video}_{question}", f"{PurePath(memory.video).stem}_{question}")
    found = next((oracle[key] for key in keys if key in oracle), None)
    if found is None or found.units is None:
        if memory.rule.prev_blocks is not None:
            raise RequestError(
                f"{path}: no units for {keys[0]!r}, which means plain dense pre-fill: watch the video with prev_blocks none"
            )
        return request, None
    if found.compression and found.compression != memory.compression:
        memory = memory.with_compression(found.compression)
    request = replace(request, memory=memory, chunk_size=found.chunk_size or request.chunk_size)
    return request, select.chunks_of_units(list(found.units), request.chunks, request.chunk_size)

