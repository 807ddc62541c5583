"""Files of JSON lines that grow while a program runs: killed at any moment, it leaves at most half a line behind."""

from __future__ import annotations

import json
from typing import IO, Any


def whole_lines(file: IO[str]) -> tuple[list[str], str]:
    """The lines of a file, and the beginning of one more that was cut off when it was written ("" if none was).

    Raises UnicodeDecodeError for a file that is no text.
    """
    *lines, torn = file.read().split("\n")
    return lines, torn


def cut_back(file: IO[str], lines: list[str]) -> None:
    """Remove what follows these first lines of a file; what is added next comes there."""
    file.seek(sum(len(line.encode()) + 1 for line in lines))
    file.truncate()


def append(file: IO[str], row: dict[str, Any]) -> None:
    """Add a row, and hand it to the operating system: it outlives this process."""
    file.write(json.dumps(row) + "\n")
    file.flush()
