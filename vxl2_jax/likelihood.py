"""Choosing among given answers by their likelihood: one pass over the question with each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import REFERENCE, Kernel
from vxl2_jax import generate, toy
from vxl2_jax.answer import Answer, Choice
from vxl2_jax.buckets import round_up
from vxl2_jax.cache.views import KVCacheView
from vxl2_jax.config import ModelConfig
from vxl2_jax.decode import empty_tail, extend, left_pad
from vxl2_jax.errors import RequestError
from vxl2_jax.memory import VideoMemory
from vxl2_jax.models import qwen2
from vxl2_jax.options import AskOptions
from vxl2_jax.runtime import Runtime
from vxl2_jax.tensor_parallel import program
from vxl2_jax.text import prompt, typed
from vxl2_jax.timing import timed


def choose_many(
    model: Runtime,
    memory: VideoMemory,
    questions: Sequence[str],
    choices: Sequence[Sequence[str]],
    options: AskOptions,
    history: Sequence[Answer] = (),
) -> list[Answer]:
    """Answer each question with the most likely of its choices.

    A choice is scored by the mean log-probability of its tokens and of the token that ends an answer: without the mean,
    a choice of many tokens would lose against a short one. The chunks that are loaded depend on the question alone.
    The options of sampling and `max_new_tokens` have no effect.

    Args:
      choices: of each question, one or several texts; the first of equally likely ones is the answer.

    Raises:
      RequestError: as `generate.ask_many`, or choices are empty or too long, or there is not one list for each question.
    """
    generate.check_model(model, memory)
    encoded = generate.encode_questions(model, questions, options, history)
    check_choices(choices, len(encoded))
    texts, tokens = zip(*map(partial(encode_choices, model), encoded, choices), strict=True) if encoded else ((), ())
    answers: dict[int, Answer] = {}
    for part, timings in generate.select_parts(model, memory, encoded, options):
        rows = [(place, answer) for place, (one, _) in enumerate(part) for answer in tokens[one.number]]
        scores: list[list[float]] = [[] for _ in part]
        read = [0] * len(part)
        for batch in generate.batches(rows, model.sizes.fills_batches):
            found = _score(model, part, batch, timings)
            for (place, _), (score, loaded) in zip(batch, found, strict=True):
                scores[place].append(score)
                read[place] = loaded
        for place, selected in enumerate(part):
            number, best = selected[0].number, int(np.argmax(scores[place]))
            answer = generate.make_answer(
                model,
                selected,
                tokens=tuple(tokens[number][best]),
                read=read[place],
                timings=timings,
                batch=len(part),
            )
            answers[number] = replace(
                answer, text=texts[number][best], choices=tuple(map(Choice, texts[number], scores[place]))
            )
    return toy.with_doubts(model, memory, [answers[number] for number in range(len(encoded))], history)


def check_choices(choices: Any, questions: int) -> None:
    """Raise RequestError for anything but one list, which is not empty, for each question."""

    def is_list(value: Any) -> bool:
        return isinstance(value, Sequence) and not isinstance(value, str)

    if not is_list(choices) or not all(is_list(each) for each in choices) or len(choices) != questions:
        raise RequestError(f"choices must be one list of texts for each question, of which there are {questions}")
    if not all(choices):
        raise RequestError("choices must hold at least one text for each question")


def encode_choices(
    model: Runtime, question: generate.EncodedQuestion, choices: Sequence[str]
) -> tuple[list[str], list[list[int]]]:
    """The choices of a question, prepared (see `text.typed`), and the tokens of each, the token that ends an answer last.

    Raises RequestError for a choice that is no text or empty, or that is too long together with the question.
    """
    texts = [typed.prepare(text, "a choice") for text in choices]
    end = model.tokenizer.encode(prompt.END)
    tokens = [[*model.tokenizer.encode_plain(text), *end] for text in texts]
    if len(question.ids) + max(map(len, tokens)) > prompt.MAX_QUESTION_TOKENS:
        raise RequestError(
            f"the question {question.text[:20]!r}… and a choice have more than the window of "
            f"{prompt.MAX_QUESTION_TOKENS:,} tokens: shorten them"
        )
    return texts, tokens


def _score(
    model: Runtime, part: generate.Part, rows: Sequence[tuple[int, list[int]]], timings: dict[str, float]
) -> list[tuple[float, int]]:
    """(mean log-probability, cached tokens read) of some answers; a row is the place of its question in the part and the
    tokens of the answer."""
    ids, count = generate.pad([[*part[place][0].ids, *answer] for place, answer in rows], model.sizes)
    lengths = np.zeros(len(ids), np.int32)
    lengths[: len(rows)] = [len(answer) for _, answer in rows]
    with timed(timings, "load"):
        view = generate.load_view(model, [part[place][1] for place, _ in rows], len(ids))
    with timed(timings, "decode"):
        sums = np.asarray(
            log_likelihoods(
                model.params,
                model.config,
                view,
                ids,
                count,
                lengths,
                last=min(round_up(int(lengths.max()), 16), ids.shape[1] - 1),
                kernel=model.kernel_for(view.dtype),
            )
        )
    generate.check_finite(model, np.isfinite(sums))
    return [(float(sums[row] / lengths[row]), generate.read_tokens(view, row)) for row in range(len(rows))]


@program(static=("config", "last", "kernel"), results=P())
def log_likelihoods(
    params: Any,
    config: ModelConfig,
    view: KVCacheView,
    ids: Int[Array | np.ndarray, "B N"],
    count: Int[Array | np.ndarray, " B"],
    lengths: Int[Array | np.ndarray, " B"],
    *,
    last: int,
    kernel: Kernel = REFERENCE,
) -> Float[Array, " B"]:
    """The log-probability of the last `lengths` real tokens of each row, given those before them and the view; fp32.

    Args:
      ids: right-padded rows, of which the first `count` tokens are real.
      lengths: at most `last`, which is less than N; 0 for rows that fill up the batch.
    """
    ids, begin = left_pad(ids, count)
    tail = empty_tail(config, view, *ids.shape)
    _, x, _ = extend(params, config, view, tail, begin, jnp.int32(0), ids, kernel=kernel)

    def one_row(args: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        x, ids, length = args
        logits = qwen2.logits(params["language"], config.language, x)
        token = jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        return jnp.where(jnp.arange(last) >= last - length, token, 0).sum()

    # One row at a time: the logits of all of them would be large.
    return jax.lax.map(one_row, (x[:, -last - 1 : -1], ids[:, -last:], jnp.asarray(lengths)))
