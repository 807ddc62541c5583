"""Questions about a clip, their answers, the seconds that these depend on, and whether a response is right."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.synthetic import clips, pictures

FORMS = {
    "exists": "Is there {a_name}?",
    "first": "Which comes first, the {name} or the {other}?",
    "when": "When does the {name} first appear?",
    "what": "What appears at {second} seconds?",
    "count": "How many times does the {name} appear?",
    "between": "What appears between the {name} and the {other}?",
    "order": "What appears, in order, from the {name} to the {other}?",
}
"""The question of each type: the only wordings that nano is trained on. "a_name" is a name with its article."""
TYPES = tuple(FORMS)
GROUP_S = 4  # seconds a group of four sampled frames covers at one frame per second
TOLERANCE_S = 4  # greatest error of a right answer to "when"
TIMES = ("once", "twice", "three times")
COUNTED = (0.5, 0.6, 0.5)  # relative frequency of "count" questions by how often the name appears
ALL_ONCE = 0.9  # fraction of clips in which every name appears once that get no "count" question
LONGEST_ORDER = 5  # most events in an answer to "order", of at least 3


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
      question, answer: the texts.
      type: one of TYPES.
      chance: accuracy of the best guess without the video, see CHANCES.
      start_s: for "when", the true start in seconds, including the offset; else None.
      evidence: (start, stop) in seconds of the clip of the events that the answer depends on; () if it depends on the
        absence of any.
    """

    question: str
    answer: str
    type: str
    chance: float
    start_s: float | None = None
    evidence: tuple[tuple[float, float], ...] = ()


# Accuracy of the best constant answer, for clips of 32 to 64 seconds and for those of 128 to 256. "when" and "count"
# were measured with `blind_guesses.chance_levels`.
CHANCES = {
    "exists": (0.5, 0.5),
    "first": (0.5, 0.5),
    "when": (0.28, 0.08),
    "what": (1 / 60, 1 / 60),
    "count": (0.58, 0.41),
    "between": (1 / 60, 1 / 60),
    "order": (0.0, 0.0),
}


def questions(
    rng: np.random.Generator,
    clip: clips.Clip,
    count: int,
    types: Sequence[str] = TYPES,
    offset_s: int = 0,
    first: int | None = None,
) -> list[Question]:
    """Random questions whose types cycle through `types`. Repetitions are avoided if the clip allows enough questions.

    Args:
      rng: also draws `first` if it is None.
      clip: shows at least one picture.
      count: number of questions.
      types: of TYPES. A type that the clip does not allow is replaced by another of them, or by any other type if none
        of them is possible.
      offset_s: added to every time in the text, for clips whose timestamps do not start at 0.
      first: index into `types`, modulo their number, of the type of the first question.
    """
    first = int(rng.integers(len(types))) if first is None else first
    result: list[Question] = []
    for i in range(count):
        others = [types[j] for j in rng.permutation(len(types))]
        drawn = (ask(rng, clip, kind, offset_s) for kind in (types[(first + i) % len(types)], *others, *TYPES))
        question = next(q for q in drawn if q is not None)
        for _ in range(8):
            if all(question.question != before.question for before in result):
                break
            question = ask(rng, clip, question.type, offset_s) or question
        result.append(question)
    return result


def ask(rng: np.random.Generator, clip: clips.Clip, kind: str, offset_s: int = 0) -> Question | None:
    """A random question of a type, or None if the clip does not allow it. Raises ValueError for an unknown type."""
    if kind not in TYPES:
        raise ValueError(f"unknown question type {kind!r}; known: {', '.join(TYPES)}")
    asked = _ASK[kind](rng, clip, offset_s)
    if asked is None:
        return None
    question, answer, events, *start = asked
    spans = tuple((event.start_s, event.stop_s) for event in events)
    return Question(question, answer, kind, chance(kind, clip.seconds), *(start or [None]), evidence=spans)


def _exists(rng: np.random.Generator, clip: clips.Clip, offset_s: int):
    shown = shows(clip)
    absent = [name for name in pictures.load()[0] if name not in shown]
    present = rng.random() < 0.5 if absent else True
    name = _pick(rng, list(shown) if present else absent)
    return FORMS["exists"].format(a_name=a(name)), "yes" if present else "no", shown.get(name, [])


def _first(rng: np.random.Generator, clip: clips.Clip, offset_s: int):
    starts = {name: events[0].start_s for name, events in shows(clip).items()}
    pairs = [(a, b) for a in starts for b in starts if starts[b] - starts[a] >= GROUP_S]
    if not pairs:
        return None
    pair = _pick(rng, pairs)
    one, other = pair if rng.random() < 0.5 else pair[::-1]
    events = [shows(clip)[name][0] for name in pair]
    return FORMS["first"].format(name=one, other=other), f"the {pair[0]}", events


def _when(rng: np.random.Generator, clip: clips.Clip, offset_s: int):
    shown = shows(clip)
    # The first picture of nearly every clip starts within the first seconds. If it were asked about as often as the
    # others, a constant answer would often be right.
    weights = np.array([0.5] + [1.0] * (len(shown) - 1))
    name = list(shown)[int(rng.choice(len(shown), p=weights / weights.sum()))]
    start = shown[name][0].start_s
    answer = f"at {first_group(start) + offset_s} seconds"
    return FORMS["when"].format(name=name), answer, shown[name][:1], start + offset_s


def _what(rng: np.random.Generator, clip: clips.Clip, offset_s: int):
    event = _pick(rng, clip.events)
    t = int(rng.integers(math.ceil(event.start_s + 1), math.floor(event.stop_s - 1) + 1))
    return FORMS["what"].format(second=t + offset_s), a(event.name), [event]


def _count(rng: np.random.Generator, clip: clips.Clip, offset_s: int):
    shown = {name: events for name, events in shows(clip).items() if len(events) <= len(TIMES)}
    counts = sorted({len(events) for events in shown.values()})
    if not counts or counts == [1] and rng.random() < ALL_ONCE:
        return None
    weights = np.array([COUNTED[times - 1] for times in counts])
    times = counts[int(rng.choice(len(counts), p=weights / weights.sum()))]
    name = _pick(rng, [name for name, events in shown.items() if len(events) == times])
    return FORMS["count"].format(name=name), TIMES[times - 1], shown[name]


def _between(rng: np.random.Generator, clip: clips.Clip, offset_s: int):
    run = _run(rng, clip, 3)
    if run is None:
        return None
    return FORMS["between"].format(name=run[0].name, other=run[2].name), a(run[1].name), run


def _order(rng: np.random.Generator, clip: clips.Clip, offset_s: int):
    lengths = rng.permutation(np.arange(3, LONGEST_ORDER + 1))
    run = next((found for n in lengths if (found := _run(rng, clip, int(n)))), None)
    if run is None:
        return None
    question = FORMS["order"].format(name=run[0].name, other=run[-1].name)
    return question, ", ".join(a(event.name) for event in run), run


_ASK = dict(zip(TYPES, (_exists, _first, _when, _what, _count, _between, _order), strict=True))


def _run(rng: np.random.Generator, clip: clips.Clip, length: int) -> Sequence[clips.Event] | None:
    """Random consecutive events, `length` of them, whose names all appear once in the clip."""
    shown, events = shows(clip), clip.events
    runs = [events[i : i + length] for i in range(len(events) - length + 1)]
    runs = [run for run in runs if all(len(shown[event.name]) == 1 for event in run)]
    return _pick(rng, runs) if runs else None


def shows(clip: clips.Clip) -> dict[str, list[clips.Event]]:
    """The events of each name, in order of time."""
    found: dict[str, list[clips.Event]] = {}
    for event in clip.events:
        found.setdefault(event.name, []).append(event)
    return found


def first_group(start_s: float) -> int:
    """First second of the four-second group in which a picture that starts at `start_s` is first sampled.

    Frames are sampled at whole seconds, so this is at ceil(start_s), which may be in the group after that of `start_s`.
    """
    return GROUP_S * (math.ceil(start_s) // GROUP_S)


def chunks_of(span: tuple[float, float], chunk_size: int, chunks: int) -> list[int]:
    """The chunks, counted from 1, with a sampled frame in [start, stop) seconds, those with the most frames first.

    One frame per second is sampled, and `chunk_size` groups of GROUP_S frames form a chunk.
    """
    seconds = np.arange(np.ceil(span[0]), np.ceil(span[1]))
    numbers = np.minimum(seconds // (GROUP_S * chunk_size), chunks - 1).astype(int) + 1
    shown = np.bincount(numbers)
    return sorted(set(numbers.tolist()), key=lambda number: (-shown[number], number))


def inside(events: Sequence[Sequence[int]], chunks: int) -> list[Sequence[int]]:
    """The events, given by their chunks, that are neither in the first nor in the last chunk."""
    return [event for event in events if min(event) > 1 and max(event) < chunks]


def article(name: str) -> str:
    """ "a" or "an"."""
    return "an" if name[0] in "aeiou" else "a"


def a(name: str) -> str:
    """The name with its article."""
    return f"{article(name)} {name}"


def is_right(question: Question | Mapping, response: str) -> bool:
    """Whether a response is right. `question` may be a dict read from JSON. Case, articles and punctuation are ignored.

    "exists": the first word is right. "when": the first number is within TOLERANCE_S of the true start. "first", "what"
    and "between": the right name and no other picture's name occurs. "count": the right number and no other occurs.
    "order": the names of pictures are exactly the right ones in the right order.
    """
    if not isinstance(question, Mapping):
        question = dataclasses.asdict(question)
    text, names = response.lower(), pictures.load()[0]
    words = re.findall(r"[a-z]+", text)
    if question["type"] == "exists":
        return words[:1] == [question["answer"]]
    if question["type"] == "when":
        number = re.search(r"\d+(\.\d+)?", text)
        return number is not None and abs(float(number[0]) - question["start_s"]) <= TOLERANCE_S
    if question["type"] == "count":
        return [word for word in words if word in ("once", "twice", "three")] == [question["answer"].split()[0]]
    if question["type"] == "order":
        wanted = [word for word in re.findall(r"[a-z]+", question["answer"]) if word in names]
        return [word for word in words if word in names] == wanted
    return set(words) & set(names) == {question["answer"].split()[-1]}


def chance(kind: str, seconds: float) -> float:
    """Accuracy of the best guess without the video, for questions of a type about a clip of so many seconds."""
    return CHANCES[kind][int(seconds > clips.RANGE_S[1])]


def _pick(rng: np.random.Generator, items: Sequence):
    return items[int(rng.integers(len(items)))]
