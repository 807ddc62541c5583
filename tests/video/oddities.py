"""Odd films, of which what is on screen at each instant is known from their making: how a case is stated.

A case writes a film and states which pictures are to be read, and whether something is missing that must be reported.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from films import Pictures, Stream, even, film_bytes, restamp, write_film

TEN = [0, 10, 20]
"""What a film of 30 pictures at 10 per second shows at 0, 1 and 2 s."""
DAY = 26 * 3600
PLAIN = {"g": "10", "bf": "0", "sc_threshold": "0"}
ORDERED = PLAIN | {"bf": "2"}  # with B-frames: stored in another order than shown


class Case(NamedTuple):
    """make: (folder) → the film; shown: pictures at the instants 0, 1 / fps, 2 / fps ... or at `seconds`.

    notes: whether something is reported as missing; None: either. turn: quarter turns of the display. limit: of frames.
    """

    make: Callable[[Path], Path]
    shown: Sequence[int]
    fps: float
    seconds: Sequence[float] | None
    notes: bool | None
    turn: int
    limit: int | None


CASES: dict[str, Case] = {}
REFUSED: dict[str, Callable[[Path], Path]] = {}


def add(name: str, make: Callable[[Path], Path], shown=TEN, *, fps=1.0, seconds=None, notes=False, turn=0, limit=None):
    """Add a case; the arguments are its fields."""
    assert name not in CASES, name
    CASES[name] = Case(make, shown, fps, seconds, notes, turn, limit)


def case(shown, **about) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Add the decorated function as a case."""

    def decorate(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        add(make.__name__, make, shown, **about)
        return make

    return decorate


def film(name: str, suffix: str, *streams: Stream, shown=TEN, written: dict | None = None, **about) -> None:
    """Add a case that `write_film` alone makes, with the keywords `written`."""

    def make(folder: Path) -> Path:
        return write_film(folder / f"film.{suffix}", *streams, **(written or {}))

    add(name, make, shown, **about)


def restamped(name: str, change: Callable[[int, int], int | None], shown=TEN, *, stream: dict | None = None, **about):
    """Add a case of MPEG-TS with changed timestamps, of the pictures `ten(**stream)`."""

    def make(folder: Path) -> Path:
        return put(folder, "ts", restamp(ts(folder, **(stream or {})), change))

    add(name, make, shown, **about)


def refused(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    REFUSED[make.__name__] = make
    return make


def put(folder: Path, suffix: str, data: bytes) -> Path:
    path = folder / f"film.{suffix}"
    path.write_bytes(data)
    return path


def ten(count: int = 30, start: float = 0, first: int = 0, options: dict = PLAIN, **about) -> Pictures:
    """Pictures `first`, `first` + 1 ... at ten per second."""
    return Pictures(even(count, 10, start=start), range(first, first + count), options=options, **about)


def ts(folder: Path, **about) -> bytes:
    """MPEG-TS of `ten`."""
    return film_bytes(ten(**about), folder=folder)
