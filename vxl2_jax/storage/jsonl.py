"""JSON Lines files that grow while a program runs. A killed program leaves at most one incomplete last line."""

from __future__ import annotations

import json
from typing import IO, Any


def read_lines(file: IO[str]) -> tuple[list[str], str]:
    """The complete lines of a file, and the incomplete last line ("" if there is none).

    Raises UnicodeDecodeError if the file is not text.
    """
    *lines, incomplete = file.read().split("\n")
    return lines, incomplete


def truncate_after(file: IO[str], lines: list[str]) -> None:
    """Keep only `lines`, which must be the first lines of the file, and move to its end."""
    file.seek(sum(len(line.encode()) + 1 for line in lines))
    file.truncate()


def append(file: IO[str], row: dict[str, Any]) -> None:
    """Write a row and flush it to the operating system, so that it outlives this process."""
    file.write(json.dumps(row) + "\n")
    file.flush()
