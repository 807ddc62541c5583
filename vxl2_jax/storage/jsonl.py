"""JSON Lines files that grow while a program runs. A killed program leaves at most one incomplete last line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

Row = TypeVar("Row")
MAX_CHARACTERS = 64 * 2**20
"""Of a line. A file is read line by line, so that it need not fit into memory."""


def read(
    file: IO[str], parse: Callable[[str], Row], is_ours: Callable[[str], bool] = lambda beginning: True
) -> Iterator[tuple[Row, int]]:
    """(a row, the number of bytes up to its end) of each complete line, from the beginning of an open file.

    Args:
      file: a text file in UTF-8, open with newline="\\n".
      parse: makes a row of a line.
      is_ours: whether an incomplete last line may be the beginning of one that was to be written here.

    Raises:
      ValueError: the file is not text, has a line of more than `MAX_CHARACTERS`, or an incomplete line that is not ours.
        What `parse` raises is passed on.
    """
    end = 0
    while line := file.readline(MAX_CHARACTERS):
        if not line.endswith("\n"):
            if len(line) == MAX_CHARACTERS:
                raise ValueError(f"a line of more than {MAX_CHARACTERS:,} characters")
            if not is_ours(line):
                raise ValueError("an incomplete line of something else")
            return
        end += len(line.encode())
        yield parse(line), end


def resume(
    file: IO[str], parse: Callable[[str], Row], is_ours: Callable[[str], bool] = lambda beginning: True
) -> Iterator[Row]:
    """The same rows of a file that is to be continued: after the last one, an incomplete line is removed."""
    kept = 0
    for row, end in read(file, parse, is_ours):
        yield row
        kept = end
    truncate(file, kept)


def truncate(file: IO[str], end: int) -> None:
    """Keep only the first `end` bytes, and move to the file's end."""
    file.seek(end)
    file.truncate()


def append(file: IO[str], row: dict[str, Any]) -> None:
    """Write a row and flush it to the operating system, so that it outlives this process."""
    file.write(json.dumps(row) + "\n")
    file.flush()
