"""Films of hours in which a few pictures, the needles, each appear once: when they appear, and questions about them."""

import itertools
from typing import NamedTuple

import numpy as np

from experiments.synthetic import clips, pictures, questions

SHORTEST, LONGEST = 8, 16  # seconds that a needle is on screen
EDGE = 16  # seconds without needles at both ends, because the first and the last chunk are always loaded dense
GAP = 4  # least seconds between two needles


class Film(NamedTuple):
    """`needles` are events at whole seconds, in order of time, each with another name."""

    seconds: int
    needles: tuple[clips.Event, ...]

    def clip(self) -> clips.Clip:
        """The needles without a background."""
        return clips.Clip(float(self.seconds), self.needles, ())

    def seconds_with_needle(self) -> list[int]:
        """The whole seconds during which a needle is on screen."""
        return [t for e in self.needles for t in range(int(e.start_s), int(e.stop_s))]


def least_seconds(needles: int) -> int:
    """The shortest film with room for so many needles."""
    return 2 * EDGE + needles * (LONGEST + GAP)


def draw_film(rng: np.random.Generator, *, seconds: int, needles: int) -> Film:
    """A random film: one needle of 8 to 16 seconds in each of `needles` equal parts.

    Raises ValueError for a film shorter than `least_seconds`, or more needles than there are pictures.
    """
    names, _ = pictures.load()
    if not 1 <= needles <= len(names):
        raise ValueError(f"the number of needles must be from 1 to {len(names)}, not {needles}")
    if seconds < least_seconds(needles):
        raise ValueError(f"{needles} needles need a film of at least {least_seconds(needles)} seconds, not {seconds}")
    bounds = np.linspace(EDGE, seconds - EDGE, needles + 1).astype(int)
    events = []
    for number, (name, stop) in enumerate(zip(rng.permutation(len(names))[:needles], bounds[1:], strict=True)):
        length = int(rng.integers(SHORTEST, LONGEST + 1))
        start = int(rng.integers(bounds[number], stop - GAP - length + 1))
        events.append(clips.draw_event(rng, names[name], float(start), float(start + length)))
    return Film(seconds, tuple(events))


def film_questions(rng: np.random.Generator, film: Film) -> list[tuple[str, questions.Question]]:
    """(needle's name, question): "exists", "when" and "what" about each needle, and "first" about each two neighbours,
    under the name of the earlier one."""

    def ask(kind: str, *events: clips.Event) -> questions.Question:
        return questions.ask(rng, film._replace(needles=events).clip(), kind)

    found = []
    for event in film.needles:
        exists = questions.FORMS["exists"].format(a_name=questions.a(event.name))
        evidence = ((event.start_s, event.stop_s),)
        found.append((event.name, questions.Question(exists, "yes", "exists", 0.5, evidence=evidence)))
        found += [(event.name, ask(kind, event)) for kind in ("when", "what")]
    return found + [(pair[0].name, ask("first", *pair)) for pair in itertools.pairwise(film.needles)]
