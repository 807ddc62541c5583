"""Conversations about videos, from the usual formats of supervised data.

A file is JSONL or one JSON list. An entry names a video and has one of three forms:

    {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\\nIs …?"}, {"from": "gpt", "value": "yes"}]}
    {"video": "a.mp4", "messages": [{"role": "user", "content": "Is …?"}, {"role": "assistant", "content": "yes"}]}
    {"video": "a.mp4", "question": "Is …?", "answer": "yes"}

Questions and answers alternate. Other fields are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vxl2_jax.errors import RequestError

_MEDIA_TOKEN = re.compile(r"\s*<(video|image)>\s*")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_DEFAULT_SYSTEM = "You are a helpful assistant."
_FIX = 'write {"video": "a.mp4", "question": "…", "answer": "…"} (other forms: `vxl2 train --help`)'


@dataclass(frozen=True)
class Conversation:
    """name: the video as written in the file; video: its path; turns: (question, answer), oldest first, at least one."""

    name: str
    video: Path
    turns: tuple[tuple[str, str], ...]


def read(files: Sequence[str | Path], videos: str | Path | None = None) -> list[Conversation]:
    """All conversations of the files, in order. Whether the videos exist is not checked.

    Args:
      videos: the folder that paths of videos are relative to; None: the folder of each file.

    Raises:
      RequestError: with the file and the line (or the entry of a list).
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
    for where, entry in _entries(path, text):
        try:
            conversation = _name_and_turns(entry)
        except _InvalidEntry as error:
            raise RequestError(f"{where}: {error}; {_FIX}") from error
        yield conversation
        empty = False
    if empty:
        raise RequestError(f"{path}: holds no conversation; {_FIX}")


def _entries(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """(location for messages, entry) of a list or of lines."""
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except ValueError as error:
            raise RequestError(f"{path}: not a JSON list ({error}); {_FIX}") from error
        yield from ((f"{path}, entry {number}", entry) for number, entry in enumerate(entries, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may contain other line separators
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except ValueError as error:
                raise RequestError(f"{path}, line {number}: not JSON ({error}); {_FIX}") from error


class _InvalidEntry(Exception):
    """What is wrong with an entry."""


def _name_and_turns(entry: Any) -> tuple[str, tuple[tuple[str, str], ...]]:
    if not isinstance(entry, dict):
        raise _InvalidEntry("not an object")
    messages, name = _messages(entry)
    name = entry.get("video", entry.get("image", name))
    if not isinstance(name, str) or not name:
        raise _InvalidEntry("names no video" if name is None else "must name exactly one video")
    if messages and messages[0] == ("system", _DEFAULT_SYSTEM):
        messages = messages[1:]
    if any(role == "system" for role, _ in messages):
        raise _InvalidEntry("has a system message, but the model's system message is fixed")
    turns = tuple((question, answer) for (_, question), (_, answer) in zip(messages[::2], messages[1::2], strict=False))
    roles = [role for role, _ in messages]
    if not turns or roles != ["user", "assistant"] * len(turns):
        raise _InvalidEntry("must alternate questions and answers")
    if not all(text for turn in turns for text in turn):
        raise _InvalidEntry("has an empty question or answer")
    return name, turns


def _messages(entry: dict[str, Any]) -> tuple[list[tuple[str, str]], str | None]:
    """([(role, text)], the video if one of the messages names it)."""
    for field, role, content in (("conversations", "from", "value"), ("messages", "role", "content")):
        if field in entry:
            if not isinstance(entry[field], list):
                raise _InvalidEntry(f"{field} must be a list")
            messages = [_message(message, role, content) for message in entry[field]]
            return [(who, text) for who, text, _ in messages], next((name for *_, name in messages if name), None)
    if "question" not in entry or "answer" not in entry:
        raise _InvalidEntry("has neither conversations, nor messages, nor question and answer")
    return [("user", _plain(entry["question"])), ("assistant", _plain(entry["answer"]))], None


def _message(message: Any, role: str, content: str) -> tuple[str, str, str | None]:
    if not isinstance(message, dict) or message.get(role) not in _ROLES:
        raise _InvalidEntry(f'a message must have "{role}" ({", ".join(_ROLES)}) and "{content}"')
    value, name = message.get(content), None
    if isinstance(value, list):  # [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "…"}]
        if not all(isinstance(part, dict) for part in value):
            raise _InvalidEntry(f'"{content}" must be text or a list of objects')
        name = next((part[kind] for part in value for kind in ("video", "image") if kind in part), None)
        value = "\n".join(_plain(part["text"]) for part in value if "text" in part)
    return _ROLES[message[role]], _plain(value), name


def _plain(text: Any) -> str:
    """The text without the token where a video belongs: here the video always comes first."""
    if not isinstance(text, str):
        raise _InvalidEntry("has a question or answer that is not text")
    return _MEDIA_TOKEN.sub("\n", text).strip()
