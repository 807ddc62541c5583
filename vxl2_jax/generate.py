"""Answering questions about a memory: relevance → chunk selection → view of the cache → decoding → answers.

Questions go through these steps in batches. Each is answered as if it were asked alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vxl2_jax import decode, hardware, relevance, toy
from vxl2_jax.answer import Answer, Chunk
from vxl2_jax.cache import views
from vxl2_jax.cache.views import KVCacheView
from vxl2_jax.errors import RequestError, shown
from vxl2_jax.hardware import BatchSizes
from vxl2_jax.memory import VideoMemory, check_is_memory
from vxl2_jax.options import AskOptions, RelevanceFunction
from vxl2_jax.relevance.oracle import oracle_of
from vxl2_jax.relevance.selection import ChunkSelection, top_chunks
from vxl2_jax.runtime import Runtime, weights_in
from vxl2_jax.sampling import Sampling
from vxl2_jax.text import prompt, typed
from vxl2_jax.timing import timed


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

    Batch sizes and question lengths are rounded up, so that other questions reuse the same executables.

    Raises:
      RequestError: an option out of range, a question that is empty or too long, or another model's memory. It is raised
        before anything runs on the device.
    """
    check_model(model, memory)
    encoded = encode_questions(model, questions, options, history)
    answers: dict[int, Answer] = {}
    for part, timings in select_parts(model, memory, encoded, options):
        answers |= _answer(model, part, options, timings)
    return toy.with_doubts(model, memory, [answers[number] for number in range(len(encoded))], history)


def select_parts(
    model: Runtime, memory: VideoMemory, questions: Sequence[EncodedQuestion], options: AskOptions
) -> Iterator[tuple[Part, dict[str, float]]]:
    """Select the chunks of all questions, in batches. Yields (questions that can be decoded together, their share of the
    seconds that each stage has taken so far)."""
    hardware.clear_jit_caches()
    memory.place(model.params, model.sizes.stride)
    oracle, chunk_size = oracle_of(options.relevance), options.chunk_groups(memory.layout.groups)
    for batch in batches(questions, model.sizes.fills_batches):
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
            for part in batches(group, model.sizes.fills_batches):
                yield part, {stage: seconds * len(part) / len(batch) for stage, seconds in timings.items()}


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


def check_model(model: Runtime, memory: VideoMemory) -> None:
    """Raise RequestError if another model made the memory."""
    check_is_memory(memory)
    if memory.model != model.fingerprint:
        made, here = (f"{weights_in(fingerprint)} weights" for fingerprint in (memory.model, model.fingerprint))
        if memory.dtype != np.int8:  # then it is the model's
            made, here = f"{memory.dtype}, {made}", f"{model.dtype}, {here}"
        fix = "watch the video again with it" if made == here else f"load the model that made it, in {made}"
        raise RequestError(f"this memory was made by another model than {model.name} in {here}; {fix}")
    lm, keys = model.config.language, memory.sparse.k
    found, own = (*keys.shape[:2], keys.shape[3]), (lm.layers, lm.kv_heads, lm.head_width)
    if found != own:
        raise RequestError(
            f"this memory is damaged: its caches have {found} layers, heads and width, {model.name} has {own}; watch the video "
            "again"
        )


@dataclass(frozen=True)
class EncodedQuestion:
    """A question with its index among all questions, and the token ids of everything after the video: earlier turns, the
    chat template and the question."""

    number: int
    text: str
    ids: Sequence[int]


Part = Sequence[tuple[EncodedQuestion, ChunkSelection]]
"""Questions with their selections, decoded as one batch. They share memory and chunk size, and either all read the whole
dense level, or all read mixed caches."""
_Item = TypeVar("_Item")


def batches(items: Sequence[_Item], fill: bool) -> Iterator[Sequence[_Item]]:
    """Divide into batches of at most `MAX_BATCH` questions, each of which `pad` fills up to a power of two with idle rows.

    fill: take all that fit, however many idle rows there are. Otherwise (on a CPU, where an idle row costs as much as a
    question) a batch has at most a quarter of idle rows: so many cost less than compiling for another batch size.
    """
    while items:
        below = 1 << (len(items).bit_length() - 1)
        size = min(len(items) if fill or 2 * len(items) >= 3 * below else below, views.MAX_BATCH)
        yield items[:size]
        items = items[size:]


def pad(questions: Sequence[Sequence[int]], sizes: BatchSizes) -> tuple[Int[np.ndarray, "B N"], Int[np.ndarray, " B"]]:
    """(right-padded ids, number of real tokens of each question). B is rounded up to a power of two with questions that have
    no tokens, and N as `BatchSizes.question_length` says, so that few programs are compiled."""
    size = 1 << (len(questions) - 1).bit_length()
    ids = np.zeros((size, sizes.question_length(max(map(len, questions)))), np.int32)
    count = np.zeros(size, np.int32)
    for row, question in enumerate(questions):
        count[row] = len(question)
        ids[row, : count[row]] = question
    return ids, count


def select_chunks(
    model: Runtime, memory: VideoMemory, questions: Sequence[EncodedQuestion], options: AskOptions
) -> list[ChunkSelection]:
    """Score the chunks for each question and select the best ones. Raises RequestError if a passed function returns
    anything but one score per chunk."""
    chunk_size = options.chunk_groups(memory.layout.groups)
    if callable(options.relevance):
        # A function of the user's gets one question at a time, without padding, so that it need not know about batches.
        scores = [_call_scorer(options.relevance, memory, question, chunk_size) for question in questions]
    else:
        inputs = relevance.ScorerInputs(
            model.params,
            model.config,
            memory,
            *pad([question.ids for question in questions], model.sizes),
            chunk_size,
            options.seed,
            model.kernel_for(memory.dtype),
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


def _answer(model: Runtime, part: Part, options: AskOptions, timings: dict[str, float]) -> dict[int, Answer]:
    """Answers by the number of their question."""
    ids, count = pad([question.ids for question, _ in part], model.sizes)
    with timed(timings, "load"):
        view = load_view(model, [chosen for _, chosen in part], len(ids))
    with timed(timings, "decode"):
        generated = decode.generate(
            model.params,
            model.config,
            view,
            ids,
            count,
            sampling_of(options),
            jax.random.key(options.seed),
            max_new=options.max_new_tokens,
            kernel=model.kernel_for(view.dtype),
        )
        check_finite(model, generated.finite)
        produced, length = np.asarray(generated.tokens), np.asarray(generated.count)
    return {
        question.number: make_answer(
            model,
            (question, chosen),
            tokens=tuple(int(token) for token in produced[row, : length[row]]),
            read=read_tokens(view, row),
            timings=timings,
            batch=len(part),
        )
        for row, (question, chosen) in enumerate(part)
    }


def check_finite(model: Runtime, finite: Bool[Array | np.ndarray, " B"]) -> None:
    """Raise RequestError if the logits of a question are not finite."""
    if not np.asarray(finite).all():
        raise RequestError(
            f"the logits of {model.name} are not finite in {model.dtype}: if those over other memories are, watch this video "
            f"again; else `vxl2 doctor --model {model.name}` names the layer, and dtype float32 or bfloat16 has a wider range"
        )


def sampling_of(options: AskOptions) -> Sampling:
    """How tokens are drawn."""
    return Sampling(np.float32(options.temperature), np.float32(options.top_p))


def load_view(model: Runtime, selections: Sequence[ChunkSelection], rows: int) -> KVCacheView:
    """What the questions of a part read, each its own selection; rows after them, up to `rows`, read nothing."""
    first = selections[0]
    kernel = model.kernel_for(first.memory.dtype)
    if first.all_dense:
        view = views.dense_view(first.memory, kernel, rows)
    else:
        dense = np.zeros((rows, len(first.dense)), bool)
        dense[: len(selections)] = [chosen.dense for chosen in selections]
        capacity = max(chosen.interior_capacity for chosen in selections)
        view = views.mixed_view(first.memory, first.chunk_size, dense, kernel, capacity)
    jax.block_until_ready(view.streams)
    return view


def read_tokens(view: KVCacheView, row: int) -> int:
    """Tokens whose keys and values a question of a batch reads."""
    return int(np.asarray(view.position).flat[row if np.ndim(view.position) else 0])


def make_answer(
    model: Runtime,
    selected: tuple[EncodedQuestion, ChunkSelection],
    *,
    tokens: tuple[int, ...],
    read: int,
    timings: dict[str, float],
    batch: int = 1,
) -> Answer:
    """The answer with these tokens to a question; `read` is the number of cached tokens that it read."""
    question, chosen = selected
    memory, size = chosen.memory, chosen.chunk_size
    chunks = tuple(
        Chunk(*memory.chunk_span(number, size), float(chosen.scores[number - 1]), bool(chosen.dense[number]))
        for number in range(1, len(chosen.scores) + 1)
    )
    return Answer(
        question=question.text,
        text=model.tokenizer.decode(tokens),
        tokens=tokens,
        stopped=tokens[-1] in model.config.stop_tokens,
        chunks=chunks,
        cache_tokens=read,
        cache_tokens_dense=memory.layout.length,
        timings=timings,
        batch=batch,
    )
