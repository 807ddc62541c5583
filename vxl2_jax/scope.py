"""What a toy model was trained on: the questions and the videos that it knows, as its checkpoint says in scope.json.

A toy answers anything else, too, and is wrong without showing it. `Scope.doubts` says when.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from vxl2_jax import files
from vxl2_jax.text.prompt import rewrite_clock_times

FILE = "scope.json"
MAX_CHARACTERS = 2**17
"""Of the regular expression of all forms with all names: compiling one takes about half a second."""
MAX_PLACEHOLDERS = 4
"""Of a form: the time to match a text grows with each."""
_ARTICLE = r"(?:a|an) "

_Text = Annotated[str, Meta(min_length=1, max_length=200)]


class Scope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """The content of scope.json.

    Attributes:
      forms: wordings of questions, with {name} and {other} for a name, {a_name} for a name with its article, and {second}
        for a whole number.
      names: of what it can tell apart.
      seconds: the longest video that it was trained on.
      max_second: the largest number that it can read.
    """

    forms: Annotated[tuple[_Text, ...], Meta(min_length=1)]
    names: Annotated[tuple[_Text, ...], Meta(min_length=1)]
    seconds: Annotated[int, Meta(ge=0)]
    max_second: Annotated[int, Meta(ge=0)]

    @property
    def summary(self) -> str:
        """What it knows, in one phrase."""
        shown = ", ".join(self.names[:3])
        return (
            f"{len(self.forms)} forms of questions about {len(self.names)} pictures ({shown}, …) in generated clips of up "
            f"to {self.seconds} seconds"
        )

    def knows(self, question: str) -> bool:
        """Whether a question has one of the forms, about names and numbers that it knows."""
        match = self._pattern.fullmatch(" ".join(rewrite_clock_times(question).split()))
        return match is not None and all(int(number) <= self.max_second for number in re.findall(r"\d+", match[0]))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        name = f"(?:{'|'.join(map(re.escape, self.names))})"
        parts = {"name": name, "other": name, "a_name": _ARTICLE + name, "second": r"\d{1,9}"}
        # Everything but the placeholders is literal.
        forms = (
            "".join(parts[piece] if place % 2 else re.escape(piece) for place, piece in enumerate(_split(form)))
            for form in self.forms
        )
        return re.compile("|".join(f"(?:{form})" for form in forms), re.IGNORECASE)

    def doubts(self, question: str, *, generated: bool, seconds: float, follows: bool = False) -> tuple[str, ...]:
        """Reasons not to trust the answer to a question, a phrase each; none for what the model was trained on.

        Args:
          question: the text.
          generated: whether the video is a generated clip.
          seconds: the video's length.
          follows: whether the question continues a conversation.
        """
        reasons = []
        if not generated:
            reasons.append("the video is not known to be a generated clip")
        elif seconds > self.seconds:
            reasons.append(f"the clip is longer than {self.seconds} seconds")
        if follows:
            reasons.append("it was not trained on conversations")
        if not self.knows(question):
            shown = f"{question:.60}" + "…" * (len(question) > 60)
            reasons.append(f'"{shown}" is not one of the forms of questions that it knows')
        return tuple(reasons)


def _split(form: str) -> list[str]:
    """The text of a form, with the names of its placeholders at odd places."""
    return re.split(r"\{(\w+)\}", form)


def read(directory: Path) -> Scope | None:
    """The scope of the model in a checkpoint directory; None for one that has no scope.json, which is no toy.

    Raises CheckpointError for a malformed file.
    """
    path = directory / FILE
    if not files.is_there(path):
        return None
    try:
        scope = msgspec.convert(files.read_json(path, files.CHECKPOINT_JSON), Scope)
    except ValueError as error:  # of msgspec, or of a key that is no Unicode text
        files.CHECKPOINT_JSON.fail(path, str(error), error)
    if unknown := {name for form in scope.forms for name in _split(form)[1::2]} - {"name", "other", "a_name", "second"}:
        files.CHECKPOINT_JSON.fail(path, f"unknown placeholder {min(unknown)}")
    counts = [form.count("{") for form in scope.forms]
    if max(counts) > MAX_PLACEHOLDERS or sum(counts) * sum(map(len, scope.names)) > MAX_CHARACTERS:
        files.CHECKPOINT_JSON.fail(
            path, f"more than {MAX_PLACEHOLDERS} placeholders in a form, or too many forms and names"
        )
    return scope
