"""Conversations about videos, from the usual formats of supervised data.

A file is JSONL or one JSON list. An entry names a video and has one of three forms:

    {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\\nIs …?"}, {"from": "gpt", "value": "yes"}]}
    {"video": "a.mp4", "messages": [{"role": "user", "content": "Is …?"}, {"role": "assistant", "content": "yes"}]}
    {"video": "a.mp4", "question": "Is …?", "answer": "yes"}

One video may also be a list of one, in "video" or "videos". Questions and answers alternate; answers are learnt to the
letter. Fields that would change what is shown or asked (`UNSUPPORTED`) are refused; others are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vxl2_jax.errors import RequestError
from vxl2_jax.files import CONVERSATIONS, parse_json, read_text, text_lines
from vxl2_jax.text import typed

_MEDIA_TOKEN = re.compile(r"\s*<(video|image)>\s*")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_DEFAULT_SYSTEM = "You are a helpful assistant."
_VIDEO_FIELDS = ("video", "videos", "image", "images")
_CLIP = "cut the clip out into a file of its own, and remove the field"
_SAMPLING = "set it in [video] of the settings, and remove the field"
UNSUPPORTED = {
    **dict.fromkeys(("start", "end", "start_time", "end_time", "start_s", "end_s", "start_sec", "end_sec"), _CLIP),
    **dict.fromkeys(("video_start", "video_end", "clip", "clip_start", "clip_end", "begin", "span"), _CLIP),
    **dict.fromkeys(("segment", "timestamp", "timestamps", "time_range"), _CLIP),
    **dict.fromkeys(("fps", "nframes", "num_frames", "max_frames", "min_frames", "frame_indices"), _SAMPLING),
    **dict.fromkeys(("system", "system_prompt"), "the model's system message is fixed: remove the field"),
    **dict.fromkeys(("audio", "audios", "tools"), "it has no effect on the model: remove the field"),
}
"""Fields that mean something which training cannot do, and the fix."""


@dataclass(frozen=True)
class Conversation:
    """name: the video as written in the file; video: its path; turns: (question, answer), oldest first, at least one."""

    name: str
    video: Path
    turns: tuple[tuple[str, str], ...]


def read(files: Sequence[str | Path], videos: str | Path | None = None) -> tuple[list[Conversation], list[str]]:
    """All conversations of the files, in order. Whether the videos exist is not checked.

    Args:
      videos: the folder that paths of videos are relative to; None: the folder of each file.

    Returns:
      (the conversations, for each invalid entry its file, line or number, and what is wrong with it).

    Raises:
      RequestError: a file cannot be read, or has no valid entry.
    """
    conversations, problems = [], []
    for path in map(Path, files):
        valid, invalid = [], []
        folder = path.parent if videos is None else Path(videos)
        for where, parse in _entries(path):
            try:
                valid.append(_conversation(parse(), folder))
            except _InvalidEntry as error:
                invalid.append(f"{where}: {error}; {CONVERSATIONS.fix}")
            except RequestError as error:  # it is not JSON
                invalid.append(str(error))
        if not valid:
            raise RequestError(invalid[0] if invalid else f"{path}: holds no conversation; {CONVERSATIONS.fix}")
        conversations += valid
        problems += invalid
    return conversations, problems


def _entries(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(location for messages, function that returns the entry) of each entry of a list or of lines."""
    text = read_text(path, CONVERSATIONS)
    if text.lstrip().startswith("["):
        for number, entry in enumerate(parse_json(text, path, CONVERSATIONS), 1):
            yield f"{path}, entry {number}", partial(lambda entry: entry, entry)
    else:
        for number, line in text_lines(text):
            where = f"{path}, line {number}"
            yield where, partial(parse_json, line, where, CONVERSATIONS)


class _InvalidEntry(Exception):
    """What is wrong with an entry."""


def _conversation(entry: Any, folder: Path) -> Conversation:
    if not isinstance(entry, dict):
        raise _InvalidEntry("not an object")
    _refuse_unsupported(entry)
    messages, name = _messages(entry)
    for field in _VIDEO_FIELDS:
        name = _one_video(entry.get(field)) or name
    if not name:
        raise _InvalidEntry("names no video")
    if messages and messages[0] == ("system", _DEFAULT_SYSTEM):
        messages = messages[1:]
    if any(role == "system" for role, _ in messages):
        raise _InvalidEntry("has a system message, but the model's system message is fixed")
    turns = tuple((question, answer) for (_, question), (_, answer) in zip(messages[::2], messages[1::2], strict=False))
    roles = [role for role, _ in messages]
    if not turns or roles != ["user", "assistant"] * len(turns):
        raise _InvalidEntry("must alternate questions and answers")
    if not all(text.strip() for turn in turns for text in turn):
        raise _InvalidEntry("has an empty question or answer")
    return Conversation(name, folder / name, turns)


def _refuse_unsupported(fields: dict[str, Any]) -> None:
    for field, fix in UNSUPPORTED.items():
        if fields.get(field) not in (None, "", [], _DEFAULT_SYSTEM):
            raise _InvalidEntry(f"has the field {field!r}: {fix}")


def _one_video(found: Any) -> str | None:
    """The video that a field names, which may be a list of one; None if it names none."""
    if isinstance(found, list) and len(found) <= 1:
        found = found[0] if found else None
    if not (found is None or isinstance(found, str)):
        raise _InvalidEntry("must name exactly one video")
    return found or None


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
    return [("user", _question(entry["question"])), ("assistant", _text(entry["answer"]))], None


def _message(message: Any, role: str, content: str) -> tuple[str, str, str | None]:
    who = message.get(role) if isinstance(message, dict) else None
    if not isinstance(who, str) or who not in _ROLES:
        raise _InvalidEntry(f'a message must have "{role}" ({", ".join(_ROLES)}) and "{content}"')
    value, name = message.get(content), None
    if isinstance(value, list):  # [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "…"}]
        if not all(isinstance(part, dict) for part in value):
            raise _InvalidEntry(f'"{content}" must be text or a list of objects')
        for part in value:
            _refuse_unsupported(part)
        named = [found for part in value for field in _VIDEO_FIELDS if (found := _one_video(part.get(field)))]
        if len(named) > 1:
            raise _InvalidEntry("must name exactly one video")
        name = named[0] if named else None
        value = "\n".join(_text(part["text"]) for part in value if "text" in part)
    return _ROLES[who], _text(value) if _ROLES[who] == "assistant" else _question(value), name


def _text(text: Any) -> str:
    if not isinstance(text, str):
        raise _InvalidEntry("has a question or answer that is not text")
    return typed.pair_surrogates(text)


def _question(text: Any) -> str:
    """A question without the token where a video belongs: here the video always comes first."""
    return _MEDIA_TOKEN.sub("\n", _text(text)).strip()
