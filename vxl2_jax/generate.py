"""Asking a memory, step by step: relevance → selection → mixed cache → decoding → answers.

Questions go through the steps in batches. Each is answered as if it were asked alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath

import jax
import numpy as np

from vxl2_jax import decode, hardware, relevance
from vxl2_jax.buckets import bucket
from vxl2_jax.cache import plan as cache_plan
from vxl2_jax.cache import views
from vxl2_jax.errors import RequestError
from vxl2_jax.memory import VideoMemory
from vxl2_jax.options import AskOptions, RelevanceFunction
from vxl2_jax.relevance import oracle, selection
from vxl2_jax.runtime import Runtime
from vxl2_jax.text import prompt
from vxl2_jax.timing import timed


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

    `stopped` is False where max_new_tokens cut the answer off. `timings` holds seconds per stage, of the whole batch
    that the question was part of: `batch` questions shared them.
    """

    question: str
    text: str
    tokens: tuple[int, ...]
    stopped: bool
    chunks: tuple[Chunk, ...]
    cache_tokens: int
    cache_tokens_dense: int
    timings: dict[str, float] = field(compare=False)
    batch: int = field(default=1, compare=False)

    @property
    def cache_ratio(self) -> float:
        """Key/value bytes loaded over those of the dense memory."""
        return self.cache_tokens / self.cache_tokens_dense


def ask(model: Runtime, memory: VideoMemory, question: str, options: AskOptions, history: Sequence[Answer]) -> Answer:
    """One question. Nothing of the memory changes, and nothing of an earlier question is felt save `history`."""
    return ask_many(model, memory, [question], options, history)[0]


def ask_many(
    model: Runtime, memory: VideoMemory, questions: Sequence[str], options: AskOptions, history: Sequence[Answer]
) -> list[Answer]:
    """Many questions, all after the same `history`, in batches; each is answered as if it were asked alone.

    Sizes of batches and lengths of questions are rounded up, so that other questions need no other executables.
    Raises RequestError before anything is asked.
    """
    options.check()
    if not all(question.strip() for question in questions):
        raise RequestError("the question is empty")
    if memory.model != model.fingerprint:
        made = memory.sparse.k.dtype
        mend = "watch the video again with it" if made == model.dtype else f"load the model that made it, in {made}"
        raise RequestError(f"this memory was made by another model than {model.name} in {model.dtype}; {mend}")
    hardware.clear_jit_caches()
    said = [(answer.question, answer.text) for answer in history]
    asked = [
        _Question(number, text, model.tokenizer.encode(prompt.suffix_text(text, said)))
        for number, text in enumerate(questions)
    ]
    answers: dict[int, Answer] = {}
    for batch in _batches(asked, views.MAX_BATCH):
        timings: dict[str, float] = {}
        with timed(timings, "relevance"):
            choices = _choose(model, memory, batch, options)
        # An oracle file may set compression and chunk size question by question.
        alike: dict[tuple, list[_Question]] = {}
        for question, choice in zip(batch, choices, strict=True):
            alike.setdefault((choice.memory.compression, choice.chunk_size, choice.all_dense), []).append(question)
        chosen = {question.number: choice for question, choice in zip(batch, choices, strict=True)}
        for group in alike.values():
            one = chosen[group[0].number]
            slots = max(chosen[question.number].slots for question in group)
            most = views.MAX_BATCH if one.all_dense else views.max_batch(one.memory, model.kernel, slots)
            for part in _batches(group, most):
                own = {stage: seconds * len(part) / len(batch) for stage, seconds in timings.items()}
                answers |= _answer(model, part, [chosen[question.number] for question in part], options, own)
    return [answers[number] for number in range(len(asked))]


@dataclass(frozen=True)
class _Question:
    """A question and its place among all that were asked; ids: tokens of it and of what comes before it."""

    number: int
    text: str
    ids: Sequence[int]


@dataclass(frozen=True)
class _Choice:
    """What a question reads: chunk numbers of a memory to load dense (None: all), by scores [chunks]. An oracle's own
    chunk size and compression have replaced those asked for; `most`: interior chunks that other questions of its category
    load, so that all of them share executables."""

    memory: VideoMemory
    chunk_size: int
    scores: np.ndarray
    chosen: np.ndarray | None
    most: int = 0

    @cached_property
    def dense(self) -> np.ndarray:
        """bool [chunks + 1], the prefix first."""
        return selection.dense_chunks(len(self.scores), self.chosen)

    @property
    def all_dense(self) -> bool:
        return bool(self.dense.all())

    @property
    def slots(self) -> int:
        """Tokens of the mixture, or of the largest one of its category."""
        interior = max(self.most, int(self.dense[2:-1].sum()))
        return cache_plan.mixed_length(self.memory.layout, self.memory.compression, self.chunk_size, interior)


def _batches(questions: list[_Question], most: int) -> Iterator[list[_Question]]:
    """Cut into batches of at most `most` questions, a power of two.

    An accelerator, which waits for its memory, takes a last batch that is filled up; a CPU, which would calculate as
    long for what fills it, takes smaller ones that are full.
    """
    full = jax.default_backend() == "cpu"
    while questions:
        size = min(1 << len(questions).bit_length() - 1 if full else len(questions), most)
        yield questions[:size]
        questions = questions[size:]


def _stacked(questions: list[_Question]) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [B, N], how many of each are real [B]). B is rounded up to a power of two; the rest are none."""
    size = 1 << (len(questions) - 1).bit_length()
    ids = np.zeros((size, bucket(max(len(question.ids) for question in questions), minimum=64)), np.int32)
    count = np.zeros(size, np.int32)
    for row, question in enumerate(questions):
        count[row] = len(question.ids)
        ids[row, : count[row]] = question.ids
    return ids, count


def _answer(
    model: Runtime, questions: list[_Question], choices: list[_Choice], options: AskOptions, timings: dict[str, float]
) -> dict[int, Answer]:
    """Answers by number: questions over one memory, chunks of one size, all of them wholly dense or none."""
    memory, chunk_size = choices[0].memory, choices[0].chunk_size
    ids, count = _stacked(questions)
    with timed(timings, "load"):
        if choices[0].all_dense:
            base = views.dense_view(memory, model.kernel, len(ids))
        else:
            dense = np.zeros((len(ids), len(choices[0].dense)), bool)
            dense[: len(choices)] = [choice.dense for choice in choices]
            most = max(choice.most for choice in choices)
            base = views.mixed_view(memory, chunk_size, dense, model.kernel, most)
        jax.block_until_ready(base.streams)
    with timed(timings, "decode"):
        sampling = decode.Sampling(np.float32(options.temperature), np.float32(options.top_p))
        generated = decode.generate(
            model.params,
            model.config,
            base,
            ids,
            count,
            sampling,
            jax.random.key(options.seed),
            max_new=options.max_new_tokens,
            kernel=model.kernel,
        )
        said, length = np.asarray(generated.tokens), np.asarray(generated.count)
    read = np.broadcast_to(base.position, len(ids))

    def answer(row: int) -> Answer:
        question, choice = questions[row], choices[row]
        tokens = tuple(int(token) for token in said[row, : length[row]])
        chunks = tuple(
            Chunk(*memory.chunk_span(number, chunk_size), float(choice.scores[number - 1]), bool(choice.dense[number]))
            for number in range(1, len(choice.scores) + 1)
        )
        return Answer(
            question=question.text,
            text=model.tokenizer.decode(tokens),
            tokens=tokens,
            stopped=tokens[-1] in model.config.stop_tokens,
            chunks=chunks,
            cache_tokens=int(read[row]),
            cache_tokens_dense=memory.layout.length,
            timings=timings,
            batch=len(questions),
        )

    return {question.number: answer(row) for row, question in enumerate(questions)}


def _choose(model: Runtime, memory: VideoMemory, questions: list[_Question], options: AskOptions) -> list[_Choice]:
    """What each question reads."""
    if isinstance(options.relevance, oracle.Oracle):
        return _consult(options.relevance, memory, questions, options)
    if isinstance(options.relevance, str) and options.relevance.startswith(oracle.PREFIX):
        return _consult(oracle.read(options.relevance.removeprefix(oracle.PREFIX)), memory, questions, options)
    chunks = memory.layout.chunks(options.chunk_size)
    if callable(options.relevance):
        # One after the other, each with its real tokens.
        scores = [_scored(options.relevance, memory, question, chunks) for question in questions]
    else:
        request = relevance.ScorerInputs(
            model.params, model.config, memory, *_stacked(questions), options.chunk_size, options.seed, model.kernel
        )
        scores = relevance.SCORERS[options.relevance](request)[: len(questions)]

    def pick(one):
        return None if options.top_k is None else selection.top_chunks(one, options.top_k)

    return [_Choice(memory, options.chunk_size, one, pick(one)) for one in scores]


def _scored(scorer: RelevanceFunction, memory: VideoMemory, question: _Question, chunks: int) -> np.ndarray:
    scores = np.asarray(scorer(np.asarray(question.ids, np.int32), memory), np.float32)
    if scores.shape != (chunks,):
        raise RequestError(f"the relevance function must give {chunks} scores, one a chunk, not shape {scores.shape}")
    return scores


def _consult(
    replayed: oracle.Oracle, memory: VideoMemory, questions: list[_Question], options: AskOptions
) -> list[_Choice]:
    """Replay oracle files of the original for questions about the memory's video."""
    pooled = {memory.compression: memory}

    def consult(question: _Question) -> _Choice:
        keys = [f"{name}_{question.text}" for name in (memory.video, PurePath(memory.video).stem)]
        found = replayed.find(keys)
        chunk_size, view, chosen, most = options.chunk_size, memory, None, 0
        if found is None or found.units is None:
            if memory.rule.prev_blocks is not None:
                raise RequestError(
                    f"{replayed.source}: no units for {keys[0]!r}, which means plain dense pre-fill: "
                    "watch the video with prev_blocks none"
                )
        else:
            compression, chunk_size = found.compression or memory.compression, found.chunk_size or chunk_size
            if compression not in pooled:
                pooled[compression] = memory.with_compression(compression)
            view = pooled[compression]
            chunks = memory.layout.chunks(chunk_size)
            chosen = selection.chunks_of_units(list(found.units), chunks, chunk_size)
            most = min(replayed.most.get(found.category, 0), max(chunks - 2, 0))
        scores = np.zeros(memory.layout.chunks(chunk_size), np.float32)
        scores[... if chosen is None else chosen - 1] = 1.0
        return _Choice(view, chunk_size, scores, chosen, most)

    return [consult(question) for question in questions]
