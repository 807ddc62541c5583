"""Haystacks: films that show some pictures, the needles, once each at known depths, among other pictures that come and
go all the time.

A needle is asked about in ways that nothing else in the film answers: whether it is there (and whether a picture is that
the film never shows), when it appears, what is seen at a moment of it. To the question about one needle the others are
hay like the rest, so that a film has as many as fit: a column of the grid is watched once and not once a depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.synthetic import clips, pictures, questions

NEEDLE_S = 8  # whole seconds a needle is on screen
LONGEST = 16  # the longest that other pictures are
GAP = (2, 8)  # least and most seconds from one picture to the next
SCENE_S = 30  # the background is cut so often
HAY = 4  # least number of names left for other pictures


@dataclass(frozen=True)
class Needle:
    """depth: its place in the film, percent; absent: the name of a picture that the film never shows."""

    depth: float
    name: str
    start_s: float
    stop_s: float
    absent: str


@dataclass(frozen=True)
class Asked:
    """A question about a needle; kind: of KINDS."""

    needle: Needle
    kind: str
    question: questions.Question


KINDS = ("exists", "absent", "when", "what")
"""Of a needle's questions: is it there, is that there which is not, when does it appear, what is seen then."""


def start_of(depth: float, seconds: int) -> int:
    """The second at which a needle starts: at depth 0 the first one, at depth 100 it ends with the film."""
    return round(depth / 100 * (seconds - NEEDLE_S))


def share_out(depths: Sequence[float], seconds: int, *, apart: bool = False) -> list[tuple[float, ...]]:
    """Depths in as few films of a length as have room for them (`apart`: one each), dealt out in turn."""
    for films in range(1, len(depths)):
        parts = [tuple(depths[first::films]) for first in range(films)]
        if not apart and all(_fit(part, seconds) for part in parts):
            return parts
    return [(depth,) for depth in depths]


def _fit(depths: Sequence[float], seconds: int) -> bool:
    starts = [start_of(depth, seconds) for depth in depths]
    return min(np.diff(starts), default=seconds) >= NEEDLE_S + GAP[0] and 2 * len(depths) + HAY <= len(
        pictures.load()[0]
    )


def draw(
    rng: np.random.Generator, *, seconds: int, depths: Sequence[float], footage: str = ""
) -> tuple[clips.Clip, tuple[Needle, ...]]:
    """A film with needles at `depths` (percent, ascending) and what they are.

    footage: behind the pictures, as in `clips.Scene`. Raises ValueError for depths that have no room beside each other.
    """
    if not _fit(depths, seconds) or seconds < NEEDLE_S:
        raise ValueError(f"{seconds} seconds have no room for needles at {', '.join(map(str, depths))} %")
    names = [pictures.load()[0][i] for i in rng.permutation(len(pictures.load()[0]))]
    count = len(depths)
    needles = tuple(
        Needle(depth, name, float(start), float(start + NEEDLE_S), absent)
        for depth, name, absent in zip(depths, names[:count], names[count : 2 * count], strict=True)
        for start in [start_of(depth, seconds)]
    )
    shown = [clips._event(rng, needle.name, needle.start_s, needle.stop_s) for needle in needles]
    bounds = [-GAP[0], *(bound for needle in needles for bound in (needle.start_s, needle.stop_s)), seconds + GAP[0]]
    for first, stop in zip(bounds[::2], bounds[1::2], strict=True):
        shown += _hay(rng, names[2 * count :], int(first) + GAP[0], int(stop) - GAP[0])
    scenes = tuple(clips.Scene(float(t), int(rng.integers(2**62)), footage) for t in range(0, seconds, SCENE_S))
    return clips.Clip(float(seconds), tuple(sorted(shown, key=lambda event: event.start_s)), scenes), needles


def _hay(rng: np.random.Generator, names: Sequence[str], first: int, stop: int) -> Iterator[clips.Event]:
    """Other pictures from second `first` on, the last of them gone by `stop`."""
    before = ""
    while stop - first >= NEEDLE_S:
        length = int(rng.integers(NEEDLE_S, min(LONGEST, stop - first) + 1))
        before = str(rng.choice([name for name in names if name != before]))
        yield clips._event(rng, before, float(first), float(first + length))
        first += length + int(rng.integers(GAP[0], GAP[1] + 1))


def needles_of(
    rng: np.random.Generator, events: Iterable[Mapping], seconds: float, depths: Sequence[float]
) -> tuple[Needle, ...]:
    """What a film that is there already shows once, by its list of {"name", "start_s", "stop_s"}; each counts as lying at
    the nearest of `depths`. Few names may be left that it never shows: one is then absent for several needles, and with none
    left there are no needles. Raises KeyError or TypeError for another list."""
    events = list(events)
    names = [event["name"] for event in events]
    free = [name for name in pictures.load()[0] if name not in names]
    once = [event for event in events if names.count(event["name"]) == 1]

    def depth(event: Mapping) -> float:
        room = max(seconds - (event["stop_s"] - event["start_s"]), 1e-9)
        return min(depths, key=lambda one: abs(one - 100 * event["start_s"] / room))

    return tuple(
        Needle(depth(event), event["name"], event["start_s"], event["stop_s"], str(absent))
        for event, absent in zip(once, itertools.cycle(rng.permutation(free)), strict=False)
    )


def ask(rng: np.random.Generator, needle: Needle) -> list[Asked]:
    """The questions about a needle, one of each of KINDS."""
    t = int(rng.integers(int(np.ceil(needle.start_s)) + 1, int(needle.stop_s - 1) + 1))
    shown = ((needle.start_s, needle.stop_s),)
    start = f"at {questions.first_group(needle.start_s)} seconds"
    there, away, name = questions.a(needle.name), questions.a(needle.absent), needle.name
    found = {
        "exists": questions.Question(f"Is there {there}?", "yes", "exists", 0.5, evidence=shown),
        "absent": questions.Question(f"Is there {away}?", "no", "exists", 0.5),
        "when": questions.Question(f"When does the {name} first appear?", start, "when", 0.0, needle.start_s, shown),
        "what": questions.Question(f"What appears at {t} seconds?", there, "what", 0.0, evidence=shown),
    }
    return [Asked(needle, kind, found[kind]) for kind in KINDS]
