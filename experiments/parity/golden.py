"""Reading a golden directory: what is there, what was used, and the layouts its ids describe."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from vxl2_jax.layout import Layout


class GoldenError(Exception):
    """The directory is not of the format; one line."""


class Archive:
    """One npz file. Remembers which keys were asked for, so that nothing passes unchecked."""

    def __init__(self, path: Path):
        self.name = path.name
        try:
            self._file = np.load(path, allow_pickle=False)
            self.keys = frozenset(self._file.files)
        except FileNotFoundError as error:
            raise GoldenError(f"{path}: no such file; is this a golden directory?") from error
        except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            raise GoldenError(f"{path}: not a readable npz file ({error})") from error
        self.used: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def __getitem__(self, key: str) -> np.ndarray:
        self.used.add(key)
        try:
            return self._file[key]
        except KeyError as error:
            raise GoldenError(f"{self.name}: {key} is missing, and other quantities depend on it") from error
        except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise GoldenError(f"{self.name}: {key} cannot be read ({error})") from error

    def get(self, key: str, default: np.ndarray | None = None) -> np.ndarray | None:
        return self[key] if key in self else default  # noqa: SIM401 (this is that method)

    def matching(self, pattern: str) -> list[re.Match]:
        """Full matches of a pattern among the keys, in the order of the file's names."""
        return [found for key in sorted(self.keys) if (found := re.fullmatch(pattern, key))]

    def skip(self, prefix: str) -> int:
        """Do without the keys of a prefix; returns how many there are."""
        skipped = {key for key in self.keys if key.startswith(prefix)}
        self.used |= skipped
        return len(skipped)

    def unused(self) -> list[str]:
        return sorted(self.keys - self.used)


def read_json(path: Path) -> dict:
    """A JSON object, or GoldenError."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise GoldenError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise GoldenError(f"{path}: must hold a JSON object")
    return found


def layout_of(video_ids: np.ndarray, prefix: int, placeholder: int, visual: int | None = None) -> Layout:
    """The layout of a video's ids: per group its timestamp tokens, then placeholders.

    Two groups never touch (a timestamp lies between them), so every run of placeholders is one group's
    visual tokens. `visual`, where known, must agree.
    """
    is_visual = np.asarray(video_ids) == placeholder
    edges = np.flatnonzero(np.diff(is_visual)) + 1
    lengths = np.diff([0, *edges, len(is_visual)])
    stamps, runs = lengths[0::2], lengths[1::2]
    if not len(is_visual) or is_visual[0] or len(stamps) != len(runs) or len(set(runs.tolist())) != 1:
        raise GoldenError(f"ids of a video must alternate timestamps and equal runs of the placeholder {placeholder}")
    if visual is not None and visual != runs[0]:
        raise GoldenError(f"groups of {runs[0]} placeholders where {visual} visual tokens were announced")
    return Layout(int(prefix), tuple(stamps.tolist()), int(runs[0]))
