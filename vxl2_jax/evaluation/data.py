"""A benchmark's folder: annotation files as they are published, videos by name, subtitles. One `BenchmarkVideo` a video."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import ModuleType

from vxl2_jax import evaluation
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import subtitles
from vxl2_jax.evaluation.rows import Row

ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts")
"""Of video files, the first preferred; case does not matter."""
_PUBLISHED = {
    "mlvu": ("json/*.json", "MLVU/json/*.json"),
    "video_mme": ("videomme/*.parquet",),
    "longvideobench": ("lvb_val.json", "validation-*.parquet"),
    "lvbench": ("video_info.meta.jsonl", "data/video_info.meta.jsonl"),
}
_LIKELY = ("*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz", "*.parquet", "*/*.parquet")


@dataclass(frozen=True)
class BenchmarkVideo:
    """A video, and what is asked about it.

    index: its place in the benchmark; path: of its file, or None and `problem` says why; srt: the text of its subtitle
    file, None where there is none or they are not asked for.
    """

    index: int
    video: str
    rows: tuple[Row, ...]
    path: Path | None = None
    problem: str = ""
    srt: str | None = None


def read(
    benchmark: ModuleType,
    folder: Path,
    *,
    annotations: Sequence[Path] = (),
    videos: Path | None = None,
    subtitle_folder: Path | None = None,
    limit: int | None = None,
) -> list[BenchmarkVideo]:
    """The benchmark's videos in the order of its annotations, each with all its questions.

    Args:
      folder: holds annotations and videos, these at any depth.
      annotations: the annotation files, where they are not to be looked for in `folder`.
      videos: another folder of videos; subtitle_folder: of SRT files named after the videos.
      limit: take only so many videos.

    Raises RequestError for a folder or an annotation file that is missing or cannot be read as that.
    """
    for place in (folder, videos, subtitle_folder):
        if place is not None and not place.is_dir():
            raise RequestError(f"{place}: no such folder; give the one that the benchmark was unpacked into")
    rows: dict[str, list[Row]] = {}
    for path in annotations or find_annotations(benchmark.NAME, folder):
        for row in evaluation.read_docs(benchmark, path):
            rows.setdefault(row.video, []).append(row)
    files = Files(videos or folder)
    return [
        BenchmarkVideo(index, video, tuple(rows[video]), *files.find(rows[video][0]), srt=_srt(subtitle_folder, video))
        for index, video in enumerate(list(rows)[:limit])
    ]


def find_annotations(name: str, folder: Path) -> list[Path]:
    """The annotation files of a benchmark's folder, by their published names, or else the only file that may be one.

    Raises RequestError if there is none, or several may be.
    """
    for pattern in _PUBLISHED[name]:
        if found := sorted(folder.glob(pattern)):
            return found
    found = sorted({path for pattern in _LIKELY for path in folder.glob(pattern)})
    if len(found) != 1:
        likely = ", ".join(path.relative_to(folder).as_posix() for path in found[:5]) + (
            ", …" if len(found) > 5 else ""
        )
        told = (
            f"several files may be its annotations ({likely})"
            if found
            else "no annotations in it (JSON, JSONL, parquet)"
        )
        raise RequestError(f"{folder}: {told}; name them with --annotations")
    return found


class Files:
    """The video files at any depth of a folder, by name."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._named: dict[str, list[Path]] = {}
        for place, _, names in os.walk(folder, followlinks=True):
            for name in names:
                if PurePath(name).suffix.lower() in ENDINGS:
                    self._named.setdefault(name, []).append(Path(place, name))

    def find(self, row: Row) -> tuple[Path | None, str]:
        """(the file of a row's video, ""), or (None, why not)."""
        for name in row.files:
            if (self.folder / name).is_file():
                return self.folder / name, ""
        wanted = PurePath(row.video).name
        stem = PurePath(wanted).stem if PurePath(wanted).suffix.lower() in ENDINGS else wanted
        named = [PurePath(name).name for name in row.files]
        others = [f"{stem}{end}" for ending in ENDINGS for end in (ending, ending.upper())]
        found = next((self._named[name] for name in (*named, *others) if name in self._named), [])
        if not found:
            return None, f"{row.video}: no such video in {self.folder}"
        if len({path.stat().st_size for path in found}) > 1:
            return (
                None,
                f"{row.video}: {len(found)} different files have this name: {', '.join(map(str, sorted(found)))}",
            )
        return min(found), ""


def _srt(folder: Path | None, video: str) -> str | None:
    path = folder and folder / f"{video}.srt"
    if path is None or not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        subtitles.parse(text)  # a mistake is told now, and not after hours
    except (RequestError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: not subtitles ({error}); mend or remove it") from error
    return text


def digest(benchmark: ModuleType, items: Sequence[BenchmarkVideo]) -> str:
    """SHA-256 of all that is asked, and of what is right: equal where the annotations are, whatever file they came from."""
    told = [[item.video, [[benchmark.prompt(row), row.answer] for row in item.rows]] for item in items]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def keys(item: BenchmarkVideo) -> list[str]:
    """A name for each question of a video by what it asks, so that runs can be paired: the same in all of them."""
    found: list[str] = []
    for row in item.rows:
        told = json.dumps([row.video, row.question, row.options])
        key = hashlib.sha256(told.encode()).hexdigest()[:16]
        again = sum(other.split("-")[0] == key for other in found)
        found.append(f"{key}-{again + 1}" if again else key)
    return found
