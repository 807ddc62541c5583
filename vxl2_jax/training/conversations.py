"""Conversations about videos, from the files that supervised data usually comes in.

A line of JSON each, or one JSON list. An entry names a video and what was said about it, in one of three ways:

    {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\\nIs …?"}, {"from": "gpt", "value": "yes"}]}
    {"video": "a.mp4", "messages": [{"role": "user", "content": "Is …?"}, {"role": "assistant", "content": "yes"}]}
    {"video": "a.mp4", "question": "Is …?", "answer": "yes"}

Questions and answers take turns, as many as there are. Other fields are left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vxl2_jax.errors import RequestError

_MARK = re.compile(r"\s*<(video|image)>\s*")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_USUAL_SYSTEM = "You are a helpful assistant."
_MEND = 'write {"video": "a.mp4", "question": "…", "answer": "…"} (see `vxl2 train --help` for conversations)'


@dataclass(frozen=True)
class Conversation:
    """turns: (question, answer), oldest first, at least one; name: the video as the file has it; video: where it is."""

    name: str
    video: Path
    turns: tuple[tuple[str, str], ...]


def read(files: Sequence[str | Path], videos: str | Path | None = None) -> list[Conversation]:
    """All conversations of the files, in order. Paths of videos count from `videos`, else from their file's folder.

    Raises RequestError naming file and line (or entry of a list). That a video is there is not looked at.
    """
    return [
        Conversation(name, (path.parent if videos is None else Path(videos)) / name, turns)
        for path in map(Path, files)
        for name, turns in _conversations(path)
    ]


def _conversations(path: Path) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot read the conversations ({error}); give a file of JSON lines") from error
    empty = True
    for at, entry in _entries(path, text):
        try:
            found = _name_and_turns(entry)
        except _Unfit as error:
            raise RequestError(f"{at}: {error}; {_MEND}") from error
        yield found
        empty = False
    if empty:
        raise RequestError(f"{path}: no conversation in it; {_MEND}")


def _entries(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """(where, entry) of a list, or of lines."""
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except ValueError as error:
            raise RequestError(f"{path}: not a JSON list ({error})") from error
        yield from ((f"{path}, entry {number}", entry) for number, entry in enumerate(entries, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold other line separators
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except ValueError as error:
                raise RequestError(f"{path}, line {number}: not JSON ({error}); {_MEND}") from error


class _Unfit(Exception):
    """What is wrong with an entry."""


def _name_and_turns(entry: Any) -> tuple[str, tuple[tuple[str, str], ...]]:
    if not isinstance(entry, dict):
        raise _Unfit("not an object")
    said, name = _said(entry)
    name = entry.get("video", entry.get("image", name))
    if not isinstance(name, str) or not name:
        raise _Unfit("names no video" if name is None else "does not name one video")
    if said and said[0] == ("system", _USUAL_SYSTEM):
        said = said[1:]
    if any(role == "system" for role, _ in said):
        raise _Unfit("has a system text, but the model's own is fixed")
    turns = tuple((question, answer) for (_, question), (_, answer) in zip(said[::2], said[1::2], strict=False))
    roles = [role for role, _ in said]
    if not turns or len(said) % 2 or roles != ["user", "assistant"] * len(turns):
        raise _Unfit("must hold questions and answers in turn")
    if not all(part for turn in turns for part in turn):
        raise _Unfit("has an empty question or answer")
    return name, turns


def _said(entry: dict) -> tuple[list[tuple[str, str]], str | None]:
    """([(role, text)], the video if one of the messages names it)."""
    for field, role, content in (("conversations", "from", "value"), ("messages", "role", "content")):
        if field in entry:
            if not isinstance(entry[field], list):
                raise _Unfit(f"{field} must be a list")
            spoken = [_spoken(one, role, content) for one in entry[field]]
            return [(who, text) for who, text, _ in spoken], next((name for *_, name in spoken if name), None)
    if "question" not in entry or "answer" not in entry:
        raise _Unfit("holds neither conversations, nor messages, nor question and answer")
    return [("user", _plain(entry["question"])), ("assistant", _plain(entry["answer"]))], None


def _spoken(one: Any, role: str, content: str) -> tuple[str, str, str | None]:
    if not isinstance(one, dict) or one.get(role) not in _ROLES:
        raise _Unfit(f'a message must have "{role}" ({", ".join(_ROLES)}) and "{content}"')
    value, name = one.get(content), None
    if isinstance(value, list):  # [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "…"}]
        if not all(isinstance(part, dict) for part in value):
            raise _Unfit(f'"{content}" must be text, or a list of objects')
        name = next((part[kind] for part in value for kind in ("video", "image") if kind in part), None)
        value = "\n".join(_plain(part["text"]) for part in value if "text" in part)
    return _ROLES[one[role]], _plain(value), name


def _plain(text: Any) -> str:
    """The text without the mark where a video belongs, which here is always at the beginning."""
    if not isinstance(text, str):
        raise _Unfit("has a question or answer that is no text")
    return _MARK.sub("\n", text).strip()
