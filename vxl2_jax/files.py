"""Opening files that users name: regular files of bounded size, as bytes, UTF-8 text, JSON or JSON Lines.

Every reader in the package opens files here, so that a pipe, a device, a directory, a huge file or damaged text is one
line of error at once. A kind of file has its limit, its error class and its fix in one place, the constants below.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, NoReturn

from vxl2_jax.errors import CheckpointError, RequestError, VideoError, Vxl2Error, first_line, shown

_MIB, _GIB, _GZIP = 2**20, 2**30, b"\x1f\x8b"


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
      fix: the end of an error message, what to give instead.
      max_bytes: larger files are refused before they are read; also the limit of what a gzipped file expands to.
      error: the class of error that is raised.
      gzipped: whether the content may be compressed with gzip.
    """

    fix: str
    max_bytes: int
    error: type[Vxl2Error] = RequestError
    gzipped: bool = False

    def fail(self, where: str | Path, problem: str, cause: BaseException | None = None) -> NoReturn:
        """Raise the kind's error: the file (or a place in it), the problem and the fix, in one line."""
        raise self.error(f"{where}: {' '.join(problem.split())}; {self.fix}") from cause


JOBS = FileKind('write one JSON object per line: {"video": "clip.mp4", "questions": ["…"]}', 64 * _MIB)
ANNOTATIONS = FileKind("give a JSON list or JSON lines, plain or gzipped", 256 * _MIB, gzipped=True)
CONVERSATIONS = FileKind(
    'write {"video": "a.mp4", "question": "…", "answer": "…"} (other forms: `vxl2 train --help`), in one or several files',
    256 * _MIB,
)
SUBTITLES = FileKind("give a subtitle file in SRT or JSON form, as UTF-8", 64 * _MIB)
ORACLE = FileKind("give an oracle file in the original's form", 64 * _MIB)
RESULTS = FileKind("give a file that this program wrote", 512 * _MIB)
ROWS = FileKind(RESULTS.fix, 64 * _GIB)  # read line by line: what grows beyond a limit could not be resumed
SETTINGS = FileKind("`vxl2 train --print-config` prints an example", _MIB)
TABLE = FileKind("give a parquet file", 256 * _MIB)
CHECKPOINT_JSON = FileKind("download it again, or correct it", 16 * _MIB, CheckpointError)
TOKENIZER = FileKind("download it again", 256 * _MIB, CheckpointError)
WEIGHTS = FileKind("download it again", 2**50, CheckpointError)
MEMORY = FileKind("give the path of a memory file", 2**50)
VIDEO = FileKind("give the path of a video, an image or a folder of images", 2**50, VideoError)
IMAGE = FileKind("give another copy of it", 2 * _GIB, VideoError)


def check_path(path: Any, what: str) -> Path:
    """The path that a user gave, with ~ expanded. `what` names it, such as "--out".

    Raises RequestError for anything else, or for a text that no path can be.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise RequestError(f"{what} must be a path, not {type(path).__name__}")
    if "\0" in os.fspath(path) or not os.fspath(path):
        raise RequestError(f"{what} must be a path, not {shown(os.fspath(path))}")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RequestError(f"{what}, {shown(os.fspath(path))}, is in the home directory of no known user") from error


def make_folder(path: Any, what: str) -> Path:
    """The folder that a user named, made if it is missing. Raises RequestError, as `check_path`, or if it cannot be made."""
    folder = check_path(path, what)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder}: cannot be made ({error.strerror}); choose another folder for {what}") from error
    return folder


def is_address(text: str | os.PathLike) -> bool:
    """Whether a text is an http(s) address, also as a Path, which has one slash less."""
    return re.match(r"https?:/", os.fspath(text), re.IGNORECASE) is not None


def is_running(process: int) -> bool:
    """Whether there is a process of this number besides this one; True where that cannot be known."""
    if process == os.getpid():  # it had the number before
        return False
    return os.path.exists(f"/proc/{process}") or not os.path.exists("/proc/self")


def is_there(path: Path) -> bool:
    """Whether there is anything at a path. A link to a missing file counts: opening it is an error, not a default."""
    try:
        return os.path.lexists(path)
    except ValueError:  # a null character
        return False


def check_output(path: Path, video: str | os.PathLike | None = None) -> None:
    """Raise RequestError unless a file can be put at a path, or in place of the one there; to be called before long work.

    video: what is read, which is never replaced: a file, or a folder of images.
    """
    try:
        with suppress(FileNotFoundError):
            os.lstat(path)
            if not path.is_file():
                raise RequestError(f"{path}: not a regular file; choose another path")
            if video is not None and any(_is_same(place, video) for place in (path, path.absolute().parent)):
                raise RequestError(f"{path}: this is the video itself, or part of it; choose another path")
        folder = path.absolute().parent
        if not folder.is_dir():
            raise RequestError(f"{path}: there is no such folder; create it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise RequestError(f"{path}: nothing can be written to its folder; choose another path")
    except (OSError, ValueError) as error:  # no name that a file can have
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{shown(str(path))}: not a path to write to ({reason}); choose another") from error


def _is_same(a: Path, b: str | os.PathLike) -> bool:
    """Whether two paths are the same file or folder."""
    with suppress(OSError, ValueError):  # no such file, or no name that one can have
        return a.samefile(b)
    return False


def open_regular(path: str | Path, kind: FileKind) -> BufferedReader:
    """Open a regular file for reading.

    Raises the kind's error for a missing, unreadable or too large file, and for anything else (a directory, a pipe, a
    device) without waiting for it.
    """
    return os.fdopen(_open_regular(path, kind), "rb")


def open_lines(path: str | Path, kind: FileKind) -> IO[str]:
    """The same for UTF-8 text that is read line by line, and need not fit into memory. Only "\\n" ends a line."""
    return os.fdopen(_open_regular(path, kind), encoding="utf-8", newline="\n")


def _open_regular(path: str | Path, kind: FileKind) -> int:
    problem = ""
    try:
        # Opening a pipe without a writer blocks without O_NONBLOCK, which means nothing for regular files.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        kind.fail(path, "no such file", error)
    except OSError as error:
        kind.fail(path, f"cannot be read ({error.strerror or error})", error)
    except ValueError as error:  # a null character, or half of a surrogate pair
        kind.fail(repr(os.fspath(path))[1:-1], "not a valid path", error)
    status = os.fstat(number)
    if stat.S_ISDIR(status.st_mode):
        problem = "a directory, not a file"
    elif not stat.S_ISREG(status.st_mode):
        problem = "a pipe or device, not a regular file"
    elif status.st_size > kind.max_bytes:
        problem = f"{status.st_size:,} bytes, which is more than the limit of {kind.max_bytes:,} for such a file"
    if problem:
        os.close(number)
        kind.fail(path, problem)
    return number


def read_bytes(path: str | Path, kind: FileKind) -> bytes:
    """The content of a file, decompressed if the kind allows it. Raises the kind's error."""
    try:
        with open_regular(path, kind) as file:
            data = file.read(kind.max_bytes + 1)
            if kind.gzipped and data.startswith(_GZIP):
                file.seek(0)
                data = gzip.GzipFile(fileobj=file).read(kind.max_bytes + 1)
    except OSError as error:  # also gzip.BadGzipFile
        kind.fail(path, f"cannot be read ({error.strerror or error})", error)
    except (EOFError, zlib.error) as error:
        kind.fail(path, f"damaged gzip data ({error})", error)
    if len(data) > kind.max_bytes:
        kind.fail(path, f"more than {kind.max_bytes:,} bytes, the limit for such a file")
    return data


def read_text(path: str | Path, kind: FileKind) -> str:
    """The content of a UTF-8 file, with or without a byte order mark, which is removed. Raises the kind's error."""
    try:
        return read_bytes(path, kind).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind.fail(path, f"not UTF-8 text ({error.reason} at byte {error.start:,})", error)


def read_json(path: str | Path, kind: FileKind) -> Any:
    """The value in a JSON file. Raises the kind's error."""
    return parse_json(read_text(path, kind), path, kind)


def read_json_object(path: str | Path, kind: FileKind) -> dict[str, Any]:
    """The object in a JSON file. Raises the kind's error."""
    content = read_json(path, kind)
    if not isinstance(content, dict):
        kind.fail(path, f"must be a JSON object, not {shown(content)}")
    return content


def read_json_lines(path: str | Path, kind: FileKind) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of each line of JSON that is not blank. Raises the kind's error."""
    for number, line in text_lines(read_text(path, kind)):
        yield number, parse_json(line, f"{path}, line {number}", kind)


def text_lines(text: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of each line that is not blank.

    Only "\\n" ends a line: JSON may contain the other separators that `str.splitlines` splits at.
    """
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def parse_json(text: str, where: str | Path, kind: FileKind) -> Any:
    """The JSON value in a text, which came from `where`. Raises the kind's error."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        kind.fail(where, f"not JSON at line {error.lineno}, column {error.colno} ({error.msg})", error)
    except ValueError as error:  # an integer of more than 4,300 digits
        kind.fail(where, f"not JSON ({first_line(error)})", error)
    except RecursionError as error:
        kind.fail(where, "not JSON that can be read (nested too deeply)", error)


def check_disk_space(folder: Path, needed: int) -> None:
    """Raise OSError, with the numbers, if fewer than `needed` bytes are free on the disk of an existing folder."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"it needs {needed / 1e9:.3g} GB more, and {free / 1e9:.3g} GB are free")
