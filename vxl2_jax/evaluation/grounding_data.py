"""Sentences and when they happen, as Charades-STA and QVHighlights publish them. One `GroundingVideo` a video.

Charades-STA (arXiv 1705.02101) is text, a line per sentence, times in seconds:

    3MSZA 24.3 30.4##person turn a light on.

QVHighlights (arXiv 2107.09609) is JSON lines with qid, query, vid, duration and relevant_windows, a list of [start, end];
any of the windows is right. What else they hold (relevant_clip_ids, saliency_scores) is not read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.data import Files
from vxl2_jax.evaluation.files import read_rows
from vxl2_jax.evaluation.rows import Row, in_row, value

Window = tuple[float, float]
_NAMED = "charades_sta_test.txt"
_LINE = re.compile(r"(\S+)\s+(\S+)\s+(\S+)\s*##(.*)")


@dataclass(frozen=True)
class Moment:
    """A sentence about a video and its windows, seconds from start to end, of which any is right."""

    id: str
    video: str
    query: str
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class GroundingVideo:
    """A video and its sentences; path: of its file, or None and `problem` says why."""

    index: int
    video: str
    moments: tuple[Moment, ...]
    path: Path | None = None
    problem: str = ""


def read_moments(form: str, path: str | Path) -> tuple[list[Moment], int]:
    """(the sentences of an annotation file, how many were left out because their window ends where it starts, or before).

    form: of FORMS. Raises RequestError naming the row and what is amiss.
    """
    if form not in FORMS:
        raise RequestError(f"{form!r} is no form of annotations; there are {', '.join(FORMS)}")
    found = FORMS[form](path)
    kept = [moment for moment in found if moment.windows]
    if not kept:
        raise RequestError(f"{path}: no sentence with a window in it; give the annotations of {form}")
    return kept, len(found) - len(kept)


def read_items(moments: Sequence[Moment], videos: Path, limit: int | None = None) -> list[GroundingVideo]:
    """The sentences by video, in order, with the files below the folder `videos` that are named after them.

    limit: take only so many videos. Raises RequestError for a folder that is not there.
    """
    if not videos.is_dir():
        raise RequestError(f"{videos}: no such folder; give the one that holds the videos")
    by_video: dict[str, list[Moment]] = {}
    for moment in moments:
        by_video.setdefault(moment.video, []).append(moment)
    files, found = Files(videos), []
    for index, video in enumerate(list(by_video)[:limit]):
        row = Row(answer="", groups={}, video=video, files=(f"{video}.mp4",))
        found.append(GroundingVideo(index, video, tuple(by_video[video]), *files.find(row)))
    return found


def mean_length(moments: Sequence[Moment]) -> float:
    """Seconds that a window has on average."""
    lengths = [stop - start for moment in moments for start, stop in moment.windows]
    return sum(lengths) / len(lengths)


def usual_length(form: str, items: Sequence[GroundingVideo], train: str | Path | None) -> tuple[float, str]:
    """(seconds that a window has on average, whose mean that is): of the annotations `train`, or, without them, of `items`.

    Raises RequestError as `read_moments` does.
    """
    if train:
        return mean_length(read_moments(form, train)[0]), "the mean of the training split"
    asked = [moment for item in items for moment in item.moments]
    return mean_length(asked), "the mean of the sentences of this run: no training split was given"


def digest(items: Sequence[GroundingVideo]) -> str:
    """SHA-256 of what is asked and of what is right."""
    told = [[item.video, [[m.id, m.query, m.windows] for m in item.moments]] for item in items]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _charades_sta(path: str | Path) -> list[Moment]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); give a file such as {_NAMED}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not text in UTF-8; give a file such as {_NAMED}") from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            with in_row(str(path), number):
                parts = _LINE.fullmatch(line.strip())
                if not parts or not parts[4].strip():
                    raise RequestError(f"must be 'VIDEO start end##sentence', not {line:.60}")
                window = _window([_number(parts[2]), _number(parts[3])])
                found.append(Moment(str(number), parts[1], parts[4].strip(), window))
    return found


def _qvhighlights(path: str | Path) -> list[Moment]:
    found = []
    for place, row in enumerate(read_rows(path), 1):
        with in_row(str(path), place):
            if "relevant_windows" not in row:
                raise RequestError("lacks 'relevant_windows', as the test split does; give the validation split")
            value(row, "duration", (int, float))
            windows = [window for pair in value(row, "relevant_windows", list) for window in _window(pair)]
            number, video, query = value(row, "qid", (int, str)), value(row, "vid"), value(row, "query")
            found.append(Moment(str(number), video, query, tuple(windows)))
    return found


FORMS: dict[str, Callable[[str | Path], list[Moment]]] = {"charades_sta": _charades_sta, "qvhighlights": _qvhighlights}


def _window(pair: Any) -> tuple[Window, ...]:
    """One window, none where it is empty."""
    good = isinstance(pair, (list, tuple)) and len(pair) == 2
    if not good or not all(isinstance(one, (int, float)) and math.isfinite(one) and one >= 0 for one in pair):
        raise RequestError(f"a window must be two numbers of seconds, not {pair!r:.60}")
    return ((float(pair[0]), float(pair[1])),) if pair[1] > pair[0] else ()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(f"{text!r:.40} is not a number of seconds") from None
