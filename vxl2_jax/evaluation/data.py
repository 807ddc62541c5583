"""A benchmark's folder: annotation files as published, videos found by name, subtitles."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from vxl2_jax import evaluation
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.rows import Row
from vxl2_jax.files import SUBTITLES, is_there, read_text

VIDEO_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts")
"""In order of preference; case-insensitive."""
ANNOTATION_FILES = {
    "mlvu": ("json/*.json", "MLVU/json/*.json"),
    "video_mme": ("videomme/*.parquet",),
    "longvideobench": ("lvb_val.json", "validation-*.parquet"),
    "lvbench": ("video_info.meta.jsonl", "data/video_info.meta.jsonl"),
}
"""By benchmark, patterns of the published annotation files, best first."""
_FALLBACK_FILES = ("*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz", "*.parquet", "*/*.parquet")


@dataclass(frozen=True)
class BenchmarkVideo:
    """A video and the questions about it.

    Attributes:
      index: its place in the benchmark.
      video: the annotation's name of the video.
      rows: the questions.
      path: its file; None if there is none, and `problem` says why.
      srt: the content of its subtitle file; None without one, or if the run is without subtitles.
    """

    index: int
    video: str
    rows: tuple[Row, ...]
    path: Path | None = None
    problem: str = ""
    srt: str | None = None

    @property
    def file(self) -> Path:
        """`path`, of a video that has one."""
        assert self.path is not None, self.problem
        return self.path


def read(
    benchmark: ModuleType,
    folder: Path,
    *,
    annotations: Sequence[Path] = (),
    videos: Path | None = None,
    subtitle_folder: Path | None = None,
    limit: int | None = None,
    left_out: Callable[[str], Any] = lambda problem: None,
) -> list[BenchmarkVideo]:
    """The benchmark's videos in the order of its annotations, each with all its questions.

    Args:
      folder: holds the annotations and, at any depth, the videos.
      annotations: annotation files, if they are not in `folder`.
      videos: the folder of the videos, if it is another one.
      subtitle_folder: a folder of SRT files named after the videos.
      limit: only the first `limit` videos.
      left_out: called with what is wrong with each annotation row that is invalid.

    Raises RequestError for a folder or an annotation file that is missing or invalid, or has no valid row.
    """
    for place in (folder, videos, subtitle_folder):
        if place is not None and not place.is_dir():
            raise RequestError(f"{place}: no such folder; give the one that the benchmark was unpacked into")
    rows: dict[str, list[Row]] = {}
    for path in annotations or find_annotations(benchmark.NAME, folder):
        valid, problems = evaluation.read_valid_docs(benchmark, path)
        if problems and not valid:
            raise RequestError(problems[0])
        for problem in problems:
            left_out(problem.replace(str(path), path.name, 1))
        for row in valid:
            rows.setdefault(row.video, []).append(row)
    files, items = VideoFiles(videos or folder), []
    for index, video in enumerate(list(rows)[:limit]):
        path, problem = files.find(video, rows[video][0].files)
        try:
            srt = _read_srt(subtitle_folder, video)
        except RequestError as error:  # its questions cannot be asked as they should be
            path, problem, srt = None, str(error), None
        items.append(BenchmarkVideo(index, video, tuple(rows[video]), path, problem, srt))
    return items


def find_annotations(name: str, folder: Path) -> list[Path]:
    """The annotation files in a benchmark's folder: those with published names, else the only one of a known type.

    Raises RequestError if there is none, or several of a known type.
    """
    for pattern in ANNOTATION_FILES[name]:
        if found := sorted(folder.glob(pattern)):
            return found
    found = sorted({path for pattern in _FALLBACK_FILES for path in folder.glob(pattern)})
    if len(found) != 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in found[:5]) + (", …" if found[5:] else "")
        why = f"several files may be its annotations ({names})" if found else "no annotations (JSON, JSONL, parquet)"
        raise RequestError(f"{folder}: {why}; give them with --annotations")
    return found


class VideoFiles:
    """An index of the video files in a folder, at any depth, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_name: dict[str, list[Path]] = {}
        for place, _, names in os.walk(folder, followlinks=True):
            for name in names:
                if PurePath(name).suffix.lower() in VIDEO_EXTENSIONS:
                    self._by_name.setdefault(name, []).append(Path(place, name))

    def find(self, video: str, files: Sequence[str]) -> tuple[Path | None, str]:
        """(the file of a video, ""), or (None, the reason why there is none). files: names to look for, best first."""
        for name in files:
            if _is_file(self.folder / name):
                return self.folder / name, ""
        stem = PurePath(video).stem if PurePath(video).suffix.lower() in VIDEO_EXTENSIONS else PurePath(video).name
        names = [PurePath(name).name for name in files]
        names += [f"{stem}{case}" for extension in VIDEO_EXTENSIONS for case in (extension, extension.upper())]
        found = next((self._by_name[name] for name in names if name in self._by_name), [])
        if not found:
            return None, f"{video}: no such video in {self.folder}"
        if len(found) > 1 and len({_size(path) for path in found}) > 1:
            paths = ", ".join(map(str, sorted(found)))
            return None, f"{video}: {len(found)} different files have this name: {paths}"
        return min(found), ""


def _size(path: Path) -> int | None:
    """Bytes; None for a link to nowhere, which is reported when the video is opened."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _read_srt(folder: Path | None, video: str) -> str | None:
    path = folder and folder / f"{video}.srt"
    return read_text(path, SUBTITLES) if path and is_there(path) else None


def digest(benchmark: ModuleType, items: Sequence[BenchmarkVideo]) -> str:
    """SHA-256 of all prompts and correct answers: the same for equal annotations in different files."""
    content = [[item.video, [[benchmark.prompt(row), row.answer] for row in item.rows]] for item in items]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def question_keys(item: BenchmarkVideo) -> list[str]:
    """A key for each question of a video, a hash of its content, by which questions of two runs are paired.

    A question that occurs again gets a number: "KEY-2".
    """
    keys: list[str] = []
    for row in item.rows:
        content = json.dumps([row.video, row.question, row.options])
        key = hashlib.sha256(content.encode()).hexdigest()[:16]
        earlier = sum(other.split("-")[0] == key for other in keys)
        keys.append(f"{key}-{earlier + 1}" if earlier else key)
    return keys
