"""Answer the requests of an evaluation harness. Each video is watched once for all questions with the same options.

Plain Python over `Model.answer_all`; no harness is imported.
"""

from __future__ import annotations

import logging
import mimetypes
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from vxl2_jax.api import Model
from vxl2_jax.batch import Job, JobResult
from vxl2_jax.errors import RequestError, shown
from vxl2_jax.generate import Answer
from vxl2_jax.options import RANGES
from vxl2_jax.text.typed import printable

_FOLLOWED = ("max_new_tokens", "temperature", "top_p", "do_sample", "num_beams", "until")
_log = logging.getLogger("vxl2_jax")


@dataclass(frozen=True)
class EvalRequest:
    """A question about a video. ask: its own options of `Model.ask`; until: strings that end its answer."""

    video: str
    question: str
    ask: Mapping[str, Any]
    until: tuple[str, ...] = ()


def request(visuals: Any, question: str, generation_kwargs: Any, where: str) -> EvalRequest:
    """Make a request from a task's document.

    Args:
      visuals, question, generation_kwargs: as the task gives them.
      where: names the document in error messages.

    Raises:
      RequestError: visuals are not exactly one video, or generation_kwargs are not supported.
    """
    ask, until = generation(generation_kwargs, where)
    return EvalRequest(video_of(visuals, where), question, ask, until)


def video_of(visuals: Any, where: str) -> str:
    """The path of the only video among a document's visuals. Raises RequestError for images, frames or several videos."""
    visuals = list(visuals) if isinstance(visuals, (list, tuple)) else [] if visuals is None else [visuals]
    kinds = [_kind(visual) for visual in visuals]
    if kinds == ["video"]:
        return fspath(visuals[0])
    found = f"{len(kinds)} of {', '.join(sorted(set(kinds)))}" if len(kinds) > 1 else "".join(kinds) or "no video"
    raise RequestError(f"{where}: {found}; vxl2_jax needs exactly one video file: choose a video task")


def _kind(visual: Any) -> str:
    if not isinstance(visual, (str, PathLike)) or not isinstance(fspath(visual), str):
        return type(visual).__name__
    kind = mimetypes.guess_type(fspath(visual), strict=False)[0] or ""
    return "an image file" if kind.startswith("image/") else "video"


def generation(generation_kwargs: Any, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Translate a task's generation_kwargs.

    An answer is sampled if temperature is above 0 and do_sample is not false.

    Returns:
      (options of `Model.ask` that the task sets, strings that end an answer).

    Raises:
      RequestError: beam search is requested, or a number is out of range; `where` names the document.
    """
    given = generation_kwargs
    if not isinstance(given, Mapping):
        raise RequestError(f"{where}: generation_kwargs must be a mapping, not {shown(given)}")
    if given.get("num_beams") not in (None, 0, 1):
        beams = f"{shown(given['num_beams'])}"
        raise RequestError(f"{where}: num_beams={beams} is not supported; use --gen_kwargs num_beams=1")
    until = given.get("until") or ()
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, (list, tuple)) or not all(isinstance(text, str) for text in until):
        raise RequestError(f"{where}: until must be a text or a list of texts, not {shown(until)}")

    if given.get("do_sample") not in (None, True, False):
        raise RequestError(f"{where}: do_sample must be true or false, not {shown(given['do_sample'])}")

    def number(name: str) -> Any:
        return RANGES[name].read(f"{where}: {name}", given[name])

    ask = {} if given.get("max_new_tokens") is None else {"max_new_tokens": number("max_new_tokens")}
    if given.get("temperature") and given.get("do_sample") is not False:
        ask |= {"temperature": number("temperature"), "top_p": 1.0 if given.get("top_p") is None else number("top_p")}
    return ask, tuple(text for text in until if text)


def ignored_names(generation_kwargs: Iterable[Any]) -> list[str]:
    """The names in generation_kwargs that have no effect here, sorted."""
    names = {str(name) for each in generation_kwargs if isinstance(each, Mapping) for name in each}
    return sorted(names - set(_FOLLOWED))


def answer_all(
    model: Model,
    requests: Sequence[EvalRequest],
    watch: Mapping[str, Any],
    ask: Mapping[str, Any],
    advance: Callable[[int], Any] = lambda count: None,
) -> list[str]:
    """Answer requests, in order.

    Requests about the same video with the same options are asked in one batch. If a video cannot be watched, or a question
    not asked, the answer is empty; the error is logged, and the number of empty answers at the end.

    Args:
      watch, ask: options of `Model.watch` and `Model.ask` for all requests; a request's own `ask` takes precedence.
      advance: called with a number of requests that have been answered.
    """
    texts, failed = [""] * len(requests), 0
    for indices, result in _results(model, requests, watch, ask):
        if result.error:
            _log.error("not watched: %s", printable(str(result.error)))
            failed += len(indices)
        else:
            for index, answer in zip(indices, result.answers, strict=True):
                if isinstance(answer, Answer):
                    texts[index] = _cut(answer.text, requests[index].until)
                else:
                    _log.error("not asked: %s", printable(str(answer)))
                    failed += 1
        advance(len(indices))
        del result  # frees its memory before the next video is watched
    if failed:
        _log.error("%d of %d answers are empty: see the errors above", failed, len(texts))
    return texts


def _results(
    model: Model, requests: Sequence[EvalRequest], watch: Mapping[str, Any], ask: Mapping[str, Any]
) -> Iterator[tuple[list[int], JobResult]]:
    """(indices of requests, their result), video by video."""
    by_options: dict[tuple, dict[str, list[int]]] = {}
    for index, request in enumerate(requests):
        by_video = by_options.setdefault(tuple(sorted(request.ask.items())), {})
        by_video.setdefault(request.video, []).append(index)
    for own, by_video in by_options.items():
        jobs = (Job(video, [requests[index].question for index in indices]) for video, indices in by_video.items())
        results = model.answer_all(jobs, watch=watch, ask={**ask, **dict(own)})
        for indices in by_video.values():
            yield indices, next(results)


def _cut(text: str, until: Sequence[str]) -> str:
    """The text before the first occurrence of a string of `until`."""
    for stop in until:
        text = text.partition(stop)[0]
    return text
