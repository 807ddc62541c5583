"""Videos at http(s) addresses, which are downloaded if --allow-url is given."""

from __future__ import annotations

import argparse
import http.client
import re
import signal
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from vxl2_jax.cli.options import progress
from vxl2_jax.errors import VideoError
from vxl2_jax.files import check_disk_space, is_address

MAX_BYTES = 8 * 2**30
_TIMEOUT_S = 60
_PART = 2**20


def add_allow_url(parser: argparse.ArgumentParser) -> None:
    """Add --allow-url."""
    parser.add_argument(
        "--allow-url",
        action="store_true",
        help=f"VIDEO may be an http(s) address: it is downloaded, at most {MAX_BYTES >> 30} GiB, to a temporary file",
    )


@contextmanager
def local_copy(video: str, args: argparse.Namespace) -> Generator[str, None, None]:
    """The path of a video: of an address, if `args` allow it, a copy that exists inside the block; else `video` itself.

    Raises VideoError if the address cannot be read or holds more than `MAX_BYTES`.
    """
    if not (args.allow_url and is_address(video)):
        yield video
        return
    with _cleaned_up_when_ended(), tempfile.TemporaryDirectory(prefix="vxl2-") as folder:
        try:
            path = Path(folder, _name(video))
            _download(video, path, args.quiet)
        except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise VideoError(
                f"{video}: cannot be downloaded ({reason}); check the address, or download it yourself"
            ) from error
        yield str(path)


def _name(address: str) -> str:
    """A name for the copy, from the address's path. Raises ValueError for no address."""
    name = unquote(PurePosixPath(urlsplit(address).path).name)
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII).lstrip(".")[-100:] or "video"


@contextmanager
def _cleaned_up_when_ended() -> Generator[None, None, None]:
    """SIGTERM and SIGHUP, which end a program at once, raise SystemExit inside the block: temporary files are removed."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread can set handlers
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]  # as nohup ignores SIGHUP
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _download(address: str, path: Path, quiet: bool) -> None:
    # Not the usual opener: that one also reads files and ftp.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    with opener.open(address, timeout=_TIMEOUT_S) as answer, path.open("wb") as file:
        length, done = int(answer.headers.get("Content-Length") or 0), 0
        _check_size(address, length)
        check_disk_space(path.parent, length)
        with progress("downloading", "MiB", quiet) as advance:
            while part := answer.read(_PART):
                done += len(part)
                _check_size(address, done)
                file.write(part)
                advance(done // _PART, max(length, done) // _PART)
    if done < length:
        raise VideoError(f"{address}: the download ended after {done:,} of {length:,} bytes; try again")


def _check_size(address: str, count: int) -> None:
    if count > MAX_BYTES:
        raise VideoError(f"{address}: larger than {MAX_BYTES >> 30} GiB; download it yourself")
