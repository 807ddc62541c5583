"""`Row`, one question of a benchmark, and helpers that parse raw annotation rows."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vxl2_jax.errors import RequestError, shown
from vxl2_jax.text.typed import pair_surrogates

MAX_SECONDS = 10**9
_KINDS = {str: "a string", list: "a list", int: "an integer", float: "a number"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question about a video, with its correct answer.

    Attributes:
      answer: the letter of the correct option, "" if the annotated answer is not among the options; None if it is not
        given, as in test splits: the response is then not scored.
      groups: by annotation field, the values under which the row is scored.
      video: the annotation's name of the video.
      files: file names to look for, best first.
      question: the question; it contains the options if `options` is empty.
      options: the texts of the options.
      id: the annotation's identifier of the question.
      duration_s: length of the video in seconds.
      subtitles: text to put into the prompt; None asks without subtitles.
    """

    answer: str | None
    groups: Mapping[str, tuple[str, ...]]
    video: str = ""
    files: tuple[str, ...] = ()
    question: str = ""
    options: tuple[str, ...] = ()
    id: str | None = None
    duration_s: float | None = None
    subtitles: str | None = None


def letter(index: int) -> str:
    """The letter of an option, counted from 0."""
    return chr(ord("A") + index)


def lettered(options: tuple[str, ...]) -> str:
    """Options as lines `A. text`."""
    return "\n".join(f"{letter(i)}. {option}" for i, option in enumerate(options))


def matches(row: Row, read: str) -> bool:
    """Whether the letter read from a response is correct; "" never is."""
    return read != "" and read == row.answer


def value(doc: Mapping[str, Any], key: str, kind: type | tuple[type, ...] = str) -> Any:
    """`doc[key]`. Raises RequestError if it is missing or not of type `kind`."""
    if key not in doc:
        keys = ", ".join(map(repr, doc)) or "none"
        raise RequestError(f"lacks the key {key!r}; add it to its keys: {keys:.200}")
    found = doc[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(found, kinds) or isinstance(found, bool):
        expected = " or ".join(_KINDS[one] for one in kinds)
        raise RequestError(f"{key!r} must be {expected}, not {shown(found)}")
    return pair_surrogates(found) if isinstance(found, str) else found


def seconds(doc: Mapping[str, Any], key: str) -> float | None:
    """`doc[key]`, a number of seconds, None if it is missing or null. Raises RequestError."""
    if doc.get(key) is None:
        return None
    found = value(doc, key, (int, float))
    if not 0 <= found <= MAX_SECONDS:
        raise RequestError(f"{key!r} must be from 0 to {MAX_SECONDS:,}, not {shown(found)}")
    return float(found)


def identifier(doc: Mapping[str, Any], key: str) -> str | None:
    """`doc[key]` as text, None if it is missing or null."""
    return None if doc.get(key) is None else pair_surrogates(str(doc[key]))


def strings(doc: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """`doc[key]`, a list of strings that is not empty. Raises RequestError."""
    found = value(doc, key, list)
    if not found or not all(isinstance(one, str) for one in found):
        raise RequestError(f"{key!r} must be a list of strings, not {shown(found)}")
    if len(found) > 26:
        raise RequestError(f"{key!r} has {len(found)} entries; give up to 26: options are named A to Z")
    return tuple(map(pair_surrogates, found))


def is_unanswered(doc: Mapping[str, Any], key: str = "answer") -> bool:
    """Whether a row has no correct answer, as in test splits, whose rows lack the key or have null there."""
    return doc.get(key) is None


def option_letter(doc: Mapping[str, Any], key: str = "answer") -> str | None:
    """`doc[key]`, a capital letter, "" for a question without a correct option, None if it is not given.

    Raises RequestError.
    """
    if is_unanswered(doc, key):
        return None
    found = value(doc, key)
    if found and not (len(found) == 1 and "A" <= found <= "Z"):
        raise RequestError(f"{key!r} must be the letter of an option, such as 'B', not {found!r:.60}")
    return found


def groups_of(doc: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The values of those `fields` that `doc` has. Of a list (a question with several types) every entry is a value."""
    present = {field: doc[field] for field in fields if doc.get(field) is not None}
    return {
        field: tuple(
            dict.fromkeys(pair_surrogates(str(one)) for one in (found if isinstance(found, list) else [found]))
        )
        for field, found in present.items()
    }


@contextmanager
def locate_errors(source: str, number: int) -> Generator[None, None, None]:
    """Prefix a RequestError raised inside with the file and the number of the row, counted from 1."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{source}: row {number}: {error}") from error
