"""Haystacks: films that show some pictures, the needles, once each at given depths, among many other pictures.

Nothing else in the film answers the questions about a needle: whether it appears (and whether a picture does that the
film never shows), when, and what is on screen at a moment of it. For the question about one needle, the others are
distractors like the rest, so a film contains as many as fit, and few films need to be watched.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.synthetic import clips, pictures, questions

NEEDLE_S = 8  # whole seconds that a needle is on screen
LONGEST = 16  # most seconds that another picture is
GAP = (2, 8)  # least and most seconds between two pictures
SCENE_S = 30  # seconds of each background
HAY = 4  # least number of names for other pictures


@dataclass(frozen=True)
class Needle:
    """One needle.

    Attributes:
      depth: its position in the film, percent.
      name: the picture.
      start_s, stop_s: when it is on screen.
      absent: the name of a picture that the film never shows.
    """

    depth: float
    name: str
    start_s: float
    stop_s: float
    absent: str


@dataclass(frozen=True)
class Asked:
    """A question about a needle, of one of KINDS."""

    needle: Needle
    kind: str
    question: questions.Question


KINDS = ("exists", "absent", "when", "what")
"""Is the needle there, is the absent picture there, when does the needle appear, what is on screen then."""


def start_of(depth: float, seconds: int) -> int:
    """The second at which a needle starts: at depth 0 with the film; at depth 100 it ends with the film."""
    return round(depth / 100 * (seconds - NEEDLE_S))


def share_out(depths: Sequence[float], seconds: int, *, apart: bool = False) -> list[tuple[float, ...]]:
    """Distribute depths over as few films of a length as have room for them, or (`apart`) one film each."""
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
    """A random film with needles at `depths` (percent, ascending), and the needles. `footage` is that of `clips.Scene`.

    Raises ValueError for depths too close to each other.
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
    shown = [clips.draw_event(rng, needle.name, needle.start_s, needle.stop_s) for needle in needles]
    bounds = [-GAP[0], *(bound for needle in needles for bound in (needle.start_s, needle.stop_s)), seconds + GAP[0]]
    for first, stop in zip(bounds[::2], bounds[1::2], strict=True):
        shown += _distractors(rng, names[2 * count :], int(first) + GAP[0], int(stop) - GAP[0])
    scenes = tuple(clips.Scene(float(t), int(rng.integers(2**62)), footage) for t in range(0, seconds, SCENE_S))
    return clips.Clip(float(seconds), tuple(sorted(shown, key=lambda event: event.start_s)), scenes), needles


def _distractors(rng: np.random.Generator, names: Sequence[str], first: int, stop: int) -> Iterator[clips.Event]:
    """Other pictures between the seconds `first` and `stop`."""
    name = ""
    while stop - first >= NEEDLE_S:
        length = int(rng.integers(NEEDLE_S, min(LONGEST, stop - first) + 1))
        name = str(rng.choice([other for other in names if other != name]))
        yield clips.draw_event(rng, name, float(first), float(first + length))
        first += length + int(rng.integers(GAP[0], GAP[1] + 1))


def needles_of(
    rng: np.random.Generator, events: Iterable[Mapping], seconds: float, depths: Sequence[float]
) -> tuple[Needle, ...]:
    """The needles of an existing film: the pictures that appear once, each at the nearest of `depths`.

    If few names never appear, several needles share an absent one; if none is left, there are no needles.

    Args:
      events: {"name", "start_s", "stop_s"} of each appearance. Raises KeyError or TypeError for anything else.
      seconds: length of the film.
    """
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
    """A question of each of KINDS about a needle."""
    t = int(rng.integers(int(np.ceil(needle.start_s)) + 1, int(needle.stop_s - 1) + 1))
    shown = ((needle.start_s, needle.stop_s),)
    start = f"at {questions.first_group(needle.start_s)} seconds"
    name, absent, form = questions.a(needle.name), questions.a(needle.absent), questions.FORMS
    found = {
        "exists": questions.Question(form["exists"].format(a_name=name), "yes", "exists", 0.5, evidence=shown),
        "absent": questions.Question(form["exists"].format(a_name=absent), "no", "exists", 0.5),
        "when": questions.Question(form["when"].format(name=needle.name), start, "when", 0.0, needle.start_s, shown),
        "what": questions.Question(form["what"].format(second=t), name, "what", 0.0, evidence=shown),
    }
    return [Asked(needle, kind, found[kind]) for kind in KINDS]
