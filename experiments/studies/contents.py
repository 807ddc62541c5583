"""Clips with controlled content: as in nano's training, with pictures spread evenly or in bursts, cut into short scenes,
or with pictures that return near or far. Names, places and backgrounds are drawn as in `synthetic.clips`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from experiments.studies.judging import Asked, by_type
from experiments.synthetic import clips, pictures, schedule
from experiments.synthetic.questions import TIMES, Question, ask, chance, questions

Draw = Callable[[np.random.Generator, str], tuple[clips.Clip, list[Asked]]]
"""(random stream, footage in the background) → a clip and its questions. Those with long answers come last: questions
are answered in batches of 16, and a batch takes as long as its longest answer."""

SECONDS = 192  # 48 groups: the usual rule hides most of such a clip, and nano was trained on as long ones
SHORT = ("exists", "first", "when", "what", "count", "between")
ONCE = ("exists", "first", "when", "what", "between")  # questions about clips that show every picture once
BATCH, OPEN = 16, 4  # questions with short answers, and open ones, about a clip


def as_trained(seconds: int = SECONDS) -> Draw:
    """Clips as in training, all seven types of questions."""

    def draw(rng: np.random.Generator, footage: str) -> tuple[clips.Clip, list[Asked]]:
        clip = clips.draw_clip(rng, seconds=seconds, names=pictures.load()[0], footage=footage)
        return clip, _asked(rng, clip, SHORT)

    return draw


def bursts(count: int, pictures_shown: int = 12, stay: float = 8.0) -> Draw:
    """`pictures_shown` different pictures of `stay` seconds in `count` bursts; as many bursts as pictures is evenly.

    Within a burst pictures follow each other at the least distance; before, between and after the bursts nothing is
    shown, for random times, or for equal ones where every picture is a burst of its own.
    """

    def draw(rng: np.random.Generator, footage: str) -> tuple[clips.Clip, list[Asked]]:
        each = pictures_shown // count
        length = each * stay + (each - 1) * schedule.GAP
        spare = SECONDS - count * length
        pauses = np.full(count + 1, 1 / (count + 1)) if each == 1 else rng.dirichlet(np.full(count + 1, 4.0))
        begins = np.cumsum(pauses * spare)[:-1] + length * np.arange(count)
        starts = [begin + i * (stay + schedule.GAP) for begin in begins for i in range(each)]
        clip = _shown(rng, [(start, start + stay) for start in np.round(starts, 1)], footage)
        return clip, _asked(rng, clip, ONCE)

    return draw


def scenes(stay: int, offset: float) -> Draw:
    """Scenes of `stay` seconds, each with a picture and a background of its own; the first lasts `offset` longer."""

    def draw(rng: np.random.Generator, footage: str) -> tuple[clips.Clip, list[Asked]]:
        starts = [0.0, *np.arange(stay + offset, SECONDS, stay)]
        clip = _shown(rng, list(itertools.pairwise([*starts, float(SECONDS)])), footage)
        cut = tuple(clips.Scene(start, int(rng.integers(2**62)), footage) for start in starts)
        clip = replace(clip, scenes=cut)
        return clip, _asked(rng, clip, ONCE)

    return draw


SLOTS, SLOT_S = 16, SECONDS // 16
OF_TWO = 4  # questions about two neighbours, and about two far ones


def returning(rng: np.random.Generator, footage: str) -> tuple[clips.Clip, list[Asked]]:
    """A clip of 16 pictures, some of which return near or far, and questions by how their evidence is spread.

    One name is shown three times evenly spread over the clip, one three times close together, one twice far apart, one
    twice close together, six once. Questions about two pictures are about neighbours or about far ones.
    """
    names, slots = pictures.load()[0], _slots(rng)
    cast = [names[i] for i in rng.permutation(len(names))[: 1 + max(slots)]]
    starts = SLOT_S * np.arange(SLOTS) + rng.integers(3, size=SLOTS)
    spans = [(start, start + 9) for start in starts.tolist()]
    clip = _shown(rng, spans, footage, [cast[i] for i in slots])
    events = {name: [event for event in clip.events if event.name == name] for name in cast}
    asked = [_how_often(label, events[cast[i]]) for i, label in enumerate(RETURNS)]
    singles = [events[name][0] for name in cast[len(RETURNS) :]]
    asked += [_how_often("count, once", [singles[i]]) for i in rng.choice(len(singles), 2, replace=False)]
    for i in rng.choice(len(singles), 2, replace=False):
        asked.append(Asked("what, one place", _about(rng, clip, "what", singles[i])))
    first = sorted((found[0] for found in events.values()), key=lambda event: event.start_s)
    pairs = list(itertools.combinations(first, 2))

    def apart(pair):
        return pair[1].start_s - pair[0].start_s

    for label, some in (
        ("first, neighbours", [pair for pair in pairs if apart(pair) < 1.5 * SLOT_S]),
        ("first, far apart", [pair for pair in pairs if apart(pair) > SECONDS / 2]),
    ):
        chosen = rng.choice(len(some), OF_TWO, replace=False)
        asked += [Asked(label, _about(rng, clip, "first", *some[i])) for i in chosen]
    return clip, asked


RETURNS = (
    "count, three spread evenly",
    "count, three close together",
    "count, two far apart",
    "count, two close together",
)
LABELS = ("what, one place", "first, neighbours", "first, far apart", "count, once", *reversed(RETURNS))


def _slots(rng: np.random.Generator) -> list[int]:
    """Which name, by number, each of the 16 slots shows: 0 … 3 as in RETURNS, the others once.

    Drawn again until OF_TWO pairs of neighbouring slots both show their names for the first time.
    """
    while True:
        spread, close, far, near = (int(rng.integers(*bounds)) for bounds in ((1, 5), (1, 11), (1, 5), (1, 13)))
        taken = {
            0: (spread, spread + 5, spread + 10),
            1: (close, close + 2, close + 4),
            2: (far, far + 10),
            3: (near, near + 2),
        }
        flat = [slot for some in taken.values() for slot in some]
        again = {slot for some in taken.values() for slot in some[1:]}
        fresh = sum(slot not in again and slot + 1 not in again for slot in range(SLOTS - 1))
        if len(set(flat)) == len(flat) and fresh >= OF_TWO:
            break
    shown = dict(zip((slot for slot in range(SLOTS) if slot not in flat), itertools.count(len(taken)), strict=False))
    for name, some in taken.items():
        shown |= dict.fromkeys(some, name)
    return [shown[slot] for slot in range(SLOTS)]


def _how_often(label: str, events: Sequence[clips.Event]) -> Asked:
    spans = tuple((event.start_s, event.stop_s) for event in events)
    text = f"How many times does the {events[0].name} appear?"
    return Asked(label, Question(text, TIMES[len(events) - 1], "count", chance("count", SECONDS), evidence=spans))


def _about(rng: np.random.Generator, clip: clips.Clip, kind: str, *events: clips.Event) -> Question:
    """A question of one type that can only be about these events."""
    return ask(rng, replace(clip, events=events), kind)


def _shown(
    rng: np.random.Generator, spans: Sequence[tuple[float, float]], footage: str, cast: Sequence[str] = ()
) -> clips.Clip:
    """A clip with pictures at these (start, stop) seconds, each another one unless a cast is given, over backgrounds as
    in training."""
    names = pictures.load()[0]
    ground = clips.draw_clip(rng, seconds=SECONDS, names=names, footage=footage)
    cast = cast or [names[i] for i in rng.permutation(len(names))[: len(spans)]]
    events = tuple(
        clips.draw_event(rng, name, float(start), float(stop)) for name, (start, stop) in zip(cast, spans, strict=True)
    )
    return replace(ground, events=events)


def _asked(rng: np.random.Generator, clip: clips.Clip, types: Sequence[str]) -> list[Asked]:
    """Questions of these types in turn, then open ones."""
    return by_type([*questions(rng, clip, BATCH, types), *questions(rng, clip, OPEN, ("order",))])
