"""Answering questions about a memory: relevance → chunk selection → view of the cache → decoding → answers.

Questions go through these steps in batches. Each is answered as if it were asked alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import jax
import numpy as np
from jaxtyping import Float, Int

from vxl2_jax import decode, hardware, relevance, toy
from vxl2_jax.cache import views
from vxl2_jax.errors import RequestError, shown
from vxl2_jax.hardware import BatchSizes
from vxl2_jax.memory import VideoMemory, check_is_memory
from vxl2_jax.options import AskOptions, RelevanceFunction
from vxl2_jax.relevance.oracle import oracle_of
from vxl2_jax.relevance.selection import ChunkSelection, top_chunks
from vxl2_jax.runtime import Runtime
from vxl2_jax.text import prompt, typed
from vxl2_jax.timing import timed


@dataclass(frozen=True)
class Chunk:
    """One bi-level chunk of the video: its time span in seconds, its relevance score, and whether it was loaded dense."""

    start_s: float
    end_s: float
    score: float
    dense: bool


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
      question, text: the question and its answer.
      tokens: token ids of the answer.
      stopped: False where max_new_tokens truncated the answer.
      chunks: the chunks of the video, in order.
      cache_tokens: tokens whose keys and values the question read; cache_tokens_dense: those of the whole dense level.
      timings: seconds per stage of the whole batch, which had `batch` questions.
      doubts: of a toy model, why the answer is no evidence: what it was not trained on, each in a phrase.
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
    doubts: tuple[str, ...] = ()

    @property
    def cache_ratio(self) -> float:
        """Key/value bytes loaded, as a share of the whole dense memory."""
        return self.cache_tokens / self.cache_tokens_dense


def ask(
    model: Runtime, memory: VideoMemory, question: str, options: AskOptions, history: Sequence[Answer] = ()
) -> Answer:
    """Answer one question. The memory does not change; earlier questions have an effect only through `history`."""
    return ask_many(model, memory, [question], options, history)[0]


def ask_many(
    model: Runtime,
    memory: VideoMemory,
    questions: Sequence[str],
    options: AskOptions,
    history: Sequence[Answer] = (),
) -> list[Answer]:
    """Answer many questions, all after the same `history`, in batches.

    Batch sizes and question lengths are rounded up, so that other questions need no other executables.

    Raises:
      RequestError: an option out of range, a question that is empty or too long, or another model's memory. Nothing has
        run then.
    """
    _check_model(model, memory)
    encoded = encode_questions(model, questions, options, history)
    hardware.clear_jit_caches()
    oracle, chunk_size = oracle_of(options.relevance), options.chunk_groups(memory.layout.groups)
    answers: dict[int, Answer] = {}
    for batch in _batches(encoded, model.sizes.fills_batches):
        timings: dict[str, float] = {}
        with timed(timings, "relevance"):
            if oracle:
                selections = oracle.select(memory, [question.text for question in batch], chunk_size)
            else:
                selections = select_chunks(model, memory, batch, options)
        # An oracle may set compression and chunk size question by question.
        groups: dict[tuple, list[tuple[EncodedQuestion, ChunkSelection]]] = {}
        for question, chosen in zip(batch, selections, strict=True):
            key = chosen.memory.compression, chosen.chunk_size, chosen.all_dense
            groups.setdefault(key, []).append((question, chosen))
        for group in groups.values():
            for part in _batches(group, model.sizes.fills_batches):
                shared = {stage: seconds * len(part) / len(batch) for stage, seconds in timings.items()}
                answers |= _answer(model, part, options, shared)
    return toy.marked(model, memory, [answers[number] for number in range(len(encoded))], history)


def encode_questions(
    model: Runtime, questions: Sequence[str], options: AskOptions, history: Sequence[Answer] = ()
) -> list[EncodedQuestion]:
    """Prepare questions (see `text.typed`) and tokenise them with what surrounds them. Runs nothing on the device.

    Raises:
      RequestError: an option is out of range, a question is no text, empty or longer than `prompt.MAX_QUESTION_TOKENS`,
        or the history does not consist of answers.
    """
    options.check()
    if isinstance(questions, str) or not isinstance(questions, Sequence):
        raise RequestError(f"questions must be a list of texts, not {type(questions).__name__}")
    if not isinstance(history, Sequence) or not all(isinstance(answer, Answer) for answer in history):
        raise RequestError("history must be a list of the answers that `Model.ask` returned")
    turns = [(typed.prepare(answer.question), typed.pair_surrogates(answer.text)) for answer in history]
    encoded = []
    for number, question in enumerate(questions):
        text = typed.prepare(question)
        ids = prompt.suffix_ids(model.tokenizer, text, turns, options.text)
        if len(ids) > prompt.MAX_QUESTION_TOKENS:
            raise RequestError(
                f"the question {text[:20]!r}… has {len(ids):,} tokens{' with its history' * bool(turns)}, more than the "
                f"window of {prompt.MAX_QUESTION_TOKENS:,}: shorten it"
            )
        encoded.append(EncodedQuestion(number, text, ids))
    return encoded


def _check_model(model: Runtime, memory: VideoMemory) -> None:
    """Raise RequestError if another model made the memory."""
    check_is_memory(memory)
    if memory.model != model.fingerprint:
        dtype = memory.sparse.k.dtype
        fix = "watch the video again with it" if dtype == model.dtype else f"load the model that made it, in {dtype}"
        raise RequestError(f"this memory was made by another model than {model.name} in {model.dtype}; {fix}")


@dataclass(frozen=True)
class EncodedQuestion:
    """A question with its index among all questions, and the token ids of it and of everything after the video."""

    number: int
    text: str
    ids: Sequence[int]


_Item = TypeVar("_Item")


def _batches(items: Sequence[_Item], fill: bool) -> Iterator[Sequence[_Item]]:
    """Divide into batches of at most `MAX_BATCH`, whose rows are filled up to a power of two.

    Unless all may be filled up, only a batch of at least three quarters of its rows is: an idle row costs less than the
    programs of another batch size.
    """
    while items:
        below = 1 << (len(items).bit_length() - 1)
        size = min(len(items) if fill or 2 * len(items) >= 3 * below else below, views.MAX_BATCH)
        yield items[:size]
        items = items[size:]


def _pad(
    questions: Sequence[EncodedQuestion], sizes: BatchSizes
) -> tuple[Int[np.ndarray, "B N"], Int[np.ndarray, " B"]]:
    """(right-padded ids, real tokens of each). B is rounded up to a power of two; the added questions have no tokens."""
    size = 1 << (len(questions) - 1).bit_length()
    ids = np.zeros((size, sizes.question_length(max(len(question.ids) for question in questions))), np.int32)
    count = np.zeros(size, np.int32)
    for row, question in enumerate(questions):
        count[row] = len(question.ids)
        ids[row, : count[row]] = question.ids
    return ids, count


def select_chunks(
    model: Runtime, memory: VideoMemory, questions: Sequence[EncodedQuestion], options: AskOptions
) -> list[ChunkSelection]:
    """Score the chunks for each question and select the best ones. Raises RequestError if a passed function returns
    anything but one score per chunk."""
    chunk_size = options.chunk_groups(memory.layout.groups)
    if callable(options.relevance):
        # One question after another, each without padding.
        scores = [_call_scorer(options.relevance, memory, question, chunk_size) for question in questions]
    else:
        inputs = relevance.ScorerInputs(
            model.params,
            model.config,
            memory,
            *_pad(questions, model.sizes),
            chunk_size,
            options.seed,
            model.kernel,
        )
        scores = list(relevance.SCORERS[cast(str, options.relevance)].score(inputs)[: len(questions)])
    return [
        ChunkSelection(memory, chunk_size, row, None if options.top_k is None else top_chunks(row, options.top_k))
        for row in scores
    ]


def _call_scorer(
    scorer: RelevanceFunction, memory: VideoMemory, question: EncodedQuestion, chunk_size: int
) -> Float[np.ndarray, " C"]:
    returned, chunks = scorer(np.asarray(question.ids, np.int32), memory), memory.layout.chunks(chunk_size)
    try:
        scores = np.asarray(returned, np.float32)
    except (TypeError, ValueError):
        scores = np.zeros(0, np.float32)
    if scores.shape != (chunks,) or np.isnan(scores).any():
        raise RequestError(
            f"the relevance function must return {chunks} scores, one number per chunk, not {shown(returned)}"
        )
    return scores


def _answer(
    model: Runtime,
    part: Sequence[tuple[EncodedQuestion, ChunkSelection]],
    options: AskOptions,
    timings: dict[str, float],
) -> dict[int, Answer]:
    """Answers by the number of their question. All of `part` share memory and chunk size, and either all read the whole
    dense level or all read mixed caches."""
    questions, selections = [question for question, _ in part], [chosen for _, chosen in part]
    memory, chunk_size = selections[0].memory, selections[0].chunk_size
    ids, count = _pad(questions, model.sizes)
    with timed(timings, "load"):
        if selections[0].all_dense:
            view = views.dense_view(memory, model.kernel, len(ids))
        else:
            dense = np.zeros((len(ids), len(selections[0].dense)), bool)
            dense[: len(selections)] = [chosen.dense for chosen in selections]
            capacity = max(chosen.interior_capacity for chosen in selections)
            view = views.mixed_view(memory, chunk_size, dense, model.kernel, capacity)
        jax.block_until_ready(view.streams)
    with timed(timings, "decode"):
        generated = decode.generate(
            model.params,
            model.config,
            view,
            ids,
            count,
            decode.Sampling(np.float32(options.temperature), np.float32(options.top_p)),
            jax.random.key(options.seed),
            max_new=options.max_new_tokens,
            kernel=model.kernel,
        )
        produced, length = np.asarray(generated.tokens), np.asarray(generated.count)
    loaded = np.broadcast_to(view.position, len(ids))

    def answer(row: int) -> Answer:
        question, chosen = part[row]
        tokens = tuple(int(token) for token in produced[row, : length[row]])
        chunks = tuple(
            Chunk(*memory.chunk_span(number, chunk_size), float(chosen.scores[number - 1]), bool(chosen.dense[number]))
            for number in range(1, len(chosen.scores) + 1)
        )
        return Answer(
            question=question.text,
            text=model.tokenizer.decode(tokens),
            tokens=tokens,
            stopped=tokens[-1] in model.config.stop_tokens,
            chunks=chunks,
            cache_tokens=int(loaded[row]),
            cache_tokens_dense=memory.layout.length,
            timings=timings,
            batch=len(part),
        )

    return {question.number: answer(row) for row, question in enumerate(questions)}
