"""An answer that arrives in pieces: decoded a few tokens at a time, all through one compiled program."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import jax
import numpy as np

from vxl2_jax import decode, generate, toy
from vxl2_jax.answer import Answer
from vxl2_jax.memory import VideoMemory
from vxl2_jax.options import AskOptions
from vxl2_jax.runtime import Runtime
from vxl2_jax.text.streaming import StreamedText
from vxl2_jax.timing import timed


class AnswerStream(Iterator[str]):
    """Pieces of text, which join to `answer.text`.

    Attributes:
      answer: None until the last piece was given; then what `Model.ask` returns.
    """

    answer: Answer | None = None

    def __init__(self, model: Runtime, pieces: Generator[str, None, Answer]) -> None:
        self._model, self._pieces = model, pieces

    def __next__(self) -> str:
        # Entered for each piece: the caller's own code runs in between.
        with self._model.precision():
            try:
                return next(self._pieces)
            except StopIteration as end:
                self.answer = self.answer or end.value
                raise


def stream(
    model: Runtime, memory: VideoMemory, question: str, options: AskOptions, history: Sequence[Answer] = ()
) -> AnswerStream:
    """Answer one question piece by piece. Raises RequestError as `generate.ask_many`, before anything runs."""
    generate.check_model(model, memory)
    (encoded,) = generate.encode_questions(model, [question], options, history)
    return AnswerStream(model, _pieces(model, memory, encoded, options, history))


def _pieces(
    model: Runtime,
    memory: VideoMemory,
    question: generate.EncodedQuestion,
    options: AskOptions,
    history: Sequence[Answer],
) -> Generator[str, None, Answer]:
    ((part, timings),) = generate.select_parts(model, memory, [question], options)
    with timed(timings, "load"):
        view = generate.load_view(model, [chosen for _, chosen in part], 1)
    text, tokens = StreamedText(model.tokenizer.decode), ()
    for more in _tokens(model, view, question, options, timings):
        tokens = (*tokens, *more)
        last = tokens[-1] in model.config.stop_tokens or len(tokens) >= options.max_new_tokens
        if piece := text.add(more, last=last):
            yield piece
        if last:
            break
    answer = generate.make_answer(model, part[0], tokens=tokens, read=generate.read_tokens(view, 0), timings=timings)
    return toy.with_doubts(model, memory, [answer], history)[0]


def _tokens(
    model: Runtime,
    view: generate.KVCacheView,
    question: generate.EncodedQuestion,
    options: AskOptions,
    timings: dict[str, float],
) -> Iterator[list[int]]:
    """Tokens of the answer, up to a stop token or `max_new_tokens`; the first one alone."""
    kernel = model.kernel_for(view.dtype)
    common, sampling = (model.params, model.config, view), generate.sampling_of(options)
    ids, count = generate.pad([question.ids], model.sizes)
    with timed(timings, "decode"):
        key = jax.random.key(options.seed)
        state, keys = decode.begin_decoding(
            *common, ids, count, sampling, key, max_new=options.max_new_tokens, kernel=kernel
        )
        generate.check_finite(model, state.finite)
        found = np.array(state.token)  # a copy: the state is used up by the next call
    yield found.tolist()
    for first in range(0, len(keys), decode.STEPS_PER_PIECE):
        with timed(timings, "decode"):
            steps = keys[first : first + decode.STEPS_PER_PIECE]
            state, tokens = decode.continue_decoding(*common, state, sampling, steps, kernel=kernel)
            found = np.asarray(tokens)[:, 0]
        stops = np.flatnonzero(np.isin(found, model.config.stop_tokens))
        kept = min(stops[0] + 1 if len(stops) else len(found), options.max_new_tokens - 1 - first)
        yield found[:kept].tolist()
