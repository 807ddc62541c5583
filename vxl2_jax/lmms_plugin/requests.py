"""Requests of a harness → answers: each video is watched once for all that is asked about it in one way.

Plain Python over `Model.answer_all`; no harness is imported.
"""

from __future__ import annotations

import logging
import mimetypes
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from vxl2_jax.batch import Job, JobResult
from vxl2_jax.errors import RequestError

if TYPE_CHECKING:
    from vxl2_jax.api import Model

_READ = ("max_new_tokens", "temperature", "top_p", "do_sample", "num_beams", "until")
_log = logging.getLogger("vxl2_jax")


@dataclass(frozen=True)
class EvalRequest:
    """A question about a video. ask: options of `Model.ask` of its own; until: texts that end an answer."""

    video: str
    question: str
    ask: Mapping[str, Any]
    until: tuple[str, ...] = ()


def request(visuals: Any, question: str, given: Mapping[str, Any], where: str) -> EvalRequest:
    """A request of what a task says of a document: its visuals, its prompt, its generation_kwargs; `where` names it.

    Raises RequestError where visuals are not one video, and for generation_kwargs that cannot be followed.
    """
    ask, until = generation(given, where)
    return EvalRequest(video_of(visuals, where), question, ask, until)


def video_of(visuals: Any, where: str) -> str:
    """The path of the one video among a document's visuals; `where` names the document.

    Raises RequestError where they are something else: images, frames, several videos, nothing.
    """
    visuals = list(visuals) if isinstance(visuals, (list, tuple)) else [] if visuals is None else [visuals]
    kinds = [_kind(visual) for visual in visuals]
    if kinds == ["video"]:
        return fspath(visuals[0])
    found = f"{len(kinds)} of {', '.join(sorted(set(kinds)))}" if len(kinds) > 1 else "".join(kinds) or "nothing to see"
    raise RequestError(f"{where}: {found}; vxl2_jax is asked about one video file at a time: choose a video task")


def _kind(visual: Any) -> str:
    if not isinstance(visual, (str, PathLike)):
        return type(visual).__name__
    kind = mimetypes.guess_type(fspath(visual), strict=False)[0] or ""
    return "an image file" if kind.startswith("image/") else "video"


def generation(given: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(options of `Model.ask`, texts that end an answer) of a task's generation_kwargs; `where` names the task.

    An answer is drawn if temperature is above 0 and do_sample is not false. max_new_tokens that a task does not give
    are left to `Model.ask`. Raises RequestError for beam search.
    """
    if (given.get("num_beams") or 1) > 1:
        raise RequestError(f"{where}: num_beams={given['num_beams']}: no beam search here; --gen_kwargs num_beams=1")
    ask = {} if given.get("max_new_tokens") is None else {"max_new_tokens": int(given["max_new_tokens"])}
    temperature = float(given.get("temperature") or 0)
    if temperature > 0 and given.get("do_sample") is not False:
        ask |= {"temperature": temperature, "top_p": 1.0 if given.get("top_p") is None else float(given["top_p"])}
    until = given.get("until") or ()
    return ask, tuple(text for text in ([until] if isinstance(until, str) else until) if text)


def not_followed(given: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names in generation_kwargs that change nothing here, sorted."""
    return sorted({name for each in given for name in each} - set(_READ))


def answer_all(
    model: Model,
    requests: Sequence[EvalRequest],
    watch: Mapping[str, Any],
    ask: Mapping[str, Any],
    advance: Callable[[int], Any] = lambda count: None,
) -> list[str]:
    """The answers to requests, in their order.

    Those about one video that are answered in one way are asked in one batch, wherever they stand. Where a video cannot
    be watched the answers are empty; that is logged, and counted in the log at the end.

    Args:
      watch, ask: options of `Model.watch` and `Model.ask` for all; a request's own `ask` replaces them.
      advance: called with a count of requests that have been answered.
    """
    texts, lost = [""] * len(requests), 0
    for numbers, done in _done(model, requests, watch, ask):
        if done.error:
            _log.error("not watched: %s", done.error)
            lost += len(numbers)
        else:
            for number, answer in zip(numbers, done.answers, strict=True):
                texts[number] = _cut(answer.text, requests[number].until)
        advance(len(numbers))
        del done  # else its memory would stand while the next video is watched
    if lost:
        _log.error("%d of %d answers are empty: their videos could not be watched", lost, len(texts))
    return texts


def _done(
    model: Model, requests: Sequence[EvalRequest], watch: Mapping[str, Any], ask: Mapping[str, Any]
) -> Iterator[tuple[list[int], JobResult]]:
    """(numbers of requests, what they got), video by video."""
    ways: dict[tuple, dict[str, list[int]]] = {}
    for number, request in enumerate(requests):
        ways.setdefault(tuple(sorted(request.ask.items())), {}).setdefault(request.video, []).append(number)
    for way, videos in ways.items():
        jobs = (Job(video, [requests[number].question for number in numbers]) for video, numbers in videos.items())
        answered = model.answer_all(jobs, watch=watch, ask={**ask, **dict(way)})
        for numbers in videos.values():
            yield numbers, next(answered)


def _cut(text: str, until: Sequence[str]) -> str:
    """What stands before the first text of `until`."""
    for stop in until:
        text = text.partition(stop)[0]
    return text
