"""One question of a benchmark, and the reading of raw annotation rows into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vxl2_jax.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a benchmark asks of one video, and what is right.

    `answer` is the option letter, "" where the annotation names none of its own options. `groups` holds, by
    annotation field, the values whose scores the row counts in. `video` is the annotation's own name of the
    video and `files` the file names to look for, best first. `options` is empty where the question contains
    them. `subtitles` None asks without subtitles.
    """

    answer: str
    groups: Mapping[str, tuple[str, ...]]
    video: str = ""
    files: tuple[str, ...] = ()
    question: str = ""
    options: tuple[str, ...] = ()
    id: str | None = None
    duration_s: float | None = None
    subtitles: str | None = None


def letter(index: int) -> str:
    """The letter of an option counted from 0."""
    return chr(ord("A") + index)


def lettered(options: tuple[str, ...]) -> str:
    """Options as `A. text`, one a line."""
    return "\n".join(f"{letter(i)}. {option}" for i, option in enumerate(options))


def matches(row: Row, read: str) -> bool:
    """Whether the letter read from a response is the row's; no letter never is."""
    return read != "" and read == row.answer


def value(doc: Mapping[str, Any], key: str, kind: type | tuple[type, ...] = str) -> Any:
    """`doc[key]`, which must be of `kind`; raises RequestError naming the key."""
    if key not in doc:
        raise RequestError(f"lacks the key {key!r}; add it to those there are: {', '.join(map(repr, doc)) or 'none'}")
    found = doc[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(found, kinds) or isinstance(found, bool):
        wanted = " or ".join(_KINDS[one] for one in kinds)
        raise RequestError(f"{key!r} must be {wanted}, not {found!r:.60}")
    return found


def texts(doc: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """`doc[key]`, a list of texts."""
    found = value(doc, key, list)
    if not found or not all(isinstance(one, str) for one in found):
        raise RequestError(f"{key!r} must be a list of texts, not {found!r:.60}")
    return tuple(found)


def option_letter(doc: Mapping[str, Any], key: str = "answer") -> str:
    """`doc[key]`, which must be one capital letter, or empty for a question without a right answer."""
    found = value(doc, key)
    if found and not (len(found) == 1 and "A" <= found <= "Z"):
        raise RequestError(f"{key!r} must be the letter of an option, such as 'B', not {found!r:.60}")
    return found


def groups_of(doc: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The values of those `fields` that `doc` has. A list (a question of several types) counts in each of them."""
    held = {field: doc[field] for field in fields if doc.get(field) is not None}
    return {
        field: tuple(dict.fromkeys(map(str, found))) if isinstance(found, list) else (str(found),)
        for field, found in held.items()
    }


@contextmanager
def in_row(source: str, number: int) -> Iterator[None]:
    """Says in which row, counted from 1, a mistake lies."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{source}: row {number}: {error}") from error


_KINDS = {str: "text", list: "a list", int: "a whole number", float: "a number"}
