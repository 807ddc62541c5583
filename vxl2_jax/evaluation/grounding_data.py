"""Sentences and when they happen, from the annotation files of Charades-STA and QVHighlights.

Charades-STA (arXiv 1705.02101) is text with one line per sentence, times in seconds:

    3MSZA 24.3 30.4##person turn a light on.

QVHighlights (arXiv 2107.09609) is JSON lines with qid, query, vid, duration and relevant_windows, a list of [start, end];
any of the windows is correct. Other keys (relevant_clip_ids, saliency_scores) are ignored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vxl2_jax.errors import RequestError, shown
from vxl2_jax.evaluation.data import VideoFiles
from vxl2_jax.evaluation.files import read_objects
from vxl2_jax.evaluation.rows import MAX_SECONDS, locate_errors, seconds, value
from vxl2_jax.files import ANNOTATIONS, read_text, text_lines
from vxl2_jax.options import Range

Window = tuple[float, float]
"""(start, end) in seconds."""
GROUNDING = replace(ANNOTATIONS, fix="give a file such as charades_sta_test.txt", gzipped=False)
_SECONDS = Range(float, 0, MAX_SECONDS)
_LINE = re.compile(r"(\S+)\s+(\S+)\s+(\S+)\s*##(.*)")


@dataclass(frozen=True)
class Moment:
    """A sentence about a video, and the windows in which it happens; any of them is correct."""

    id: str
    video: str
    query: str
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class GroundingVideo:
    """A video and the sentences about it. path: its file; None if there is none, and `problem` says why."""

    index: int
    video: str
    moments: tuple[Moment, ...]
    path: Path | None = None
    problem: str = ""

    @property
    def file(self) -> Path:
        """`path`, of a video that has one."""
        assert self.path is not None, self.problem
        return self.path


def read_moments(annotation_format: str, path: str | Path) -> tuple[list[Moment], int]:
    """Read an annotation file.

    Args:
      annotation_format: a key of FORMATS.
      path: the file.

    Returns:
      The sentences with a window, and how many were left out because their window ends at or before its start.

    Raises RequestError with the row and what is wrong with it.
    """
    if annotation_format not in FORMATS:
        raise RequestError(f"unknown annotation format {annotation_format!r}: choose {', '.join(FORMATS)}")
    moments = FORMATS[annotation_format](path)
    kept = [moment for moment in moments if moment.windows]
    if not kept:
        raise RequestError(f"{path}: no sentence with a window in it; give the annotations of {annotation_format}")
    return kept, len(moments) - len(kept)


def group_by_video(moments: Sequence[Moment], folder: Path, limit: int | None = None) -> list[GroundingVideo]:
    """The sentences by video, in order, with the video files named after them.

    Args:
      moments: the sentences.
      folder: holds the videos at any depth.
      limit: only the first `limit` videos.

    Raises RequestError if there is no such folder.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder; give the one that holds the videos")
    by_video: dict[str, list[Moment]] = {}
    for moment in moments:
        by_video.setdefault(moment.video, []).append(moment)
    files, items = VideoFiles(folder), []
    for index, video in enumerate(list(by_video)[:limit]):
        items.append(GroundingVideo(index, video, tuple(by_video[video]), *files.find(video, (f"{video}.mp4",))))
    return items


def mean_length(moments: Sequence[Moment]) -> float:
    """The mean length of the windows, in seconds."""
    lengths = [end - start for moment in moments for start, end in moment.windows]
    return sum(lengths) / len(lengths)


def random_span_length(
    annotation_format: str, items: Sequence[GroundingVideo], train: str | Path | None
) -> tuple[float, str]:
    """(length in seconds of a span at random, where it comes from): the mean window of the annotations `train`, or of
    `items` without them.

    Raises RequestError as `read_moments` does.
    """
    if train:
        return mean_length(read_moments(annotation_format, train)[0]), "the mean of the training split"
    moments = [moment for item in items for moment in item.moments]
    return mean_length(moments), "the mean of the sentences of this run: no training split was given"


def digest(items: Sequence[GroundingVideo]) -> str:
    """SHA-256 of all sentences and windows."""
    content = [[item.video, [[m.id, m.query, m.windows] for m in item.moments]] for item in items]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _charades_sta(path: str | Path) -> list[Moment]:
    moments = []
    for number, line in text_lines(read_text(path, GROUNDING)):
        with locate_errors(str(path), number):
            parts = _LINE.fullmatch(line.strip())
            if not parts or not parts[4].strip():
                raise RequestError(f"must be 'VIDEO start end##sentence', not {line:.60}")
            window = _window([_SECONDS.parse("a time", parts[2]), _SECONDS.parse("a time", parts[3])])
            moments.append(Moment(str(number), parts[1], parts[4].strip(), window))
    return moments


def _qvhighlights(path: str | Path) -> list[Moment]:
    moments = []
    for number, row in enumerate(read_objects(path), 1):
        with locate_errors(str(path), number):
            if "relevant_windows" not in row:
                raise RequestError("lacks 'relevant_windows', as the test split does; give the validation split")
            seconds(row, "duration")
            windows = [window for pair in value(row, "relevant_windows", list) for window in _window(pair)]
            qid, video, query = value(row, "qid", (int, str)), value(row, "vid"), value(row, "query")
            moments.append(Moment(str(qid), video, query, tuple(windows)))
    return moments


FORMATS: dict[str, Callable[[str | Path], list[Moment]]] = {
    "charades_sta": _charades_sta,
    "qvhighlights": _qvhighlights,
}


def _window(pair: Any) -> tuple[Window, ...]:
    """A window, or none if it is empty."""
    valid = isinstance(pair, (list, tuple)) and len(pair) == 2
    if not valid or not all(isinstance(one, (int, float)) and 0 <= one <= MAX_SECONDS for one in pair):
        raise RequestError(f"a window must be two numbers of seconds, not {shown(pair)}")
    return ((float(pair[0]), float(pair[1])),) if pair[1] > pair[0] else ()
