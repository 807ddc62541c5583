"""Questions about a clip, their answers, the seconds these rest on, and whether a response is right."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.synthetic import clips, pictures

TYPES = ("exists", "first", "when", "what", "count", "between", "order")
GROUP_S = 4  # seconds a group of four sampled frames covers at one frame per second
TOLERANCE_S = 4  # how far from the true start a "when" answer may lie
TIMES = ("once", "twice", "three times")
COUNTED = (0.5, 0.6, 0.5)  # how readily a name shown once, twice, three times is asked about
ALL_ONCE = 0.9  # of clips that show everything once, how many are not asked how often
LONGEST_ORDER = 5  # events that an answer to "order" lists at most, at least 3


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
      question, answer: the text as asked and as expected back.
      type: one of TYPES.
      chance: share of such questions that the best guess without the video gets right (see CHANCES).
      start_s: for "when", the true start in seconds (offset included); else None.
      evidence: (start, stop) in seconds of the clip, of the events that the answer rests on; empty where it rests on
        there being none.
    """

    question: str
    answer: str
    type: str
    chance: float
    start_s: float | None = None
    evidence: tuple[tuple[float, float], ...] = ()


# Share of questions right by the best constant answer, for clips of 32 to 64 seconds and for those of 128 to 256;
# "when" and "count" measured by `chance_levels`.
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
    """`count` questions whose types go round `types`, beginning with number `first`.

    Args:
      rng: draws what is asked, and `first` where it is None.
      clip: the clip asked about; it shows at least one picture.
      count: how many questions.
      types: which types; one that the clip does not allow is replaced by another of them, or by
        any type where none of them is possible.
      offset_s: added to every time in the text, for clips whose timestamps do not start at 0.
      first: index into `types` (any integer, taken round) of the first question's type.

    Returns:
      The questions; repeats are avoided where the clip has enough to ask about.
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
    """One question of one type, or None where the clip does not allow it. Raises ValueError for an unknown type."""
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
    return f"Is there {article(name)} {name}?", "yes" if present else "no", shown.get(name, [])


def _first(rng: np.random.Generator, clip: clips.Clip, offset_s: int):
    starts = first_starts(clip)
    pairs = [(a, b) for a in starts for b in starts if starts[b] - starts[a] >= GROUP_S]
    if not pairs:
        return None
    pair = _pick(rng, pairs)
    one, other = pair if rng.random() < 0.5 else pair[::-1]
    events = [shows(clip)[name][0] for name in pair]
    return f"Which comes first, the {one} or the {other}?", f"the {pair[0]}", events


def _when(rng: np.random.Generator, clip: clips.Clip, offset_s: int):
    shown = shows(clip)
    # The first picture of nearly every clip starts within the first seconds. Asked about as
    # often as the others, it would let a constant answer do well.
    weights = np.array([0.5] + [1.0] * (len(shown) - 1))
    name = list(shown)[int(rng.choice(len(shown), p=weights / weights.sum()))]
    start = shown[name][0].start_s
    answer = f"at {first_group(start) + offset_s} seconds"
    return f"When does the {name} first appear?", answer, shown[name][:1], start + offset_s


def _what(rng: np.random.Generator, clip: clips.Clip, offset_s: int):
    event = _pick(rng, clip.events)
    t = int(rng.integers(math.ceil(event.start_s + 1), math.floor(event.stop_s - 1) + 1))
    return f"What appears at {t + offset_s} seconds?", a(event.name), [event]


def _count(rng: np.random.Generator, clip: clips.Clip, offset_s: int):
    shown = {name: events for name, events in shows(clip).items() if len(events) <= len(TIMES)}
    there = sorted({len(events) for events in shown.values()})
    if not there or there == [1] and rng.random() < ALL_ONCE:
        return None
    readily = np.array([COUNTED[times - 1] for times in there])
    times = there[int(rng.choice(len(there), p=readily / readily.sum()))]
    name = _pick(rng, [name for name, events in shown.items() if len(events) == times])
    return f"How many times does the {name} appear?", TIMES[times - 1], shown[name]


def _between(rng: np.random.Generator, clip: clips.Clip, offset_s: int):
    run = _run(rng, clip, 3)
    if run is None:
        return None
    return f"What appears between the {run[0].name} and the {run[2].name}?", a(run[1].name), run


def _order(rng: np.random.Generator, clip: clips.Clip, offset_s: int):
    lengths = rng.permutation(np.arange(3, LONGEST_ORDER + 1))
    run = next((found for n in lengths if (found := _run(rng, clip, int(n)))), None)
    if run is None:
        return None
    question = f"What appears, in order, from the {run[0].name} to the {run[-1].name}?"
    return question, ", ".join(a(event.name) for event in run), run


_ASK = {
    "exists": _exists,
    "first": _first,
    "when": _when,
    "what": _what,
    "count": _count,
    "between": _between,
    "order": _order,
}


def _run(rng: np.random.Generator, clip: clips.Clip, length: int) -> Sequence[clips.Event] | None:
    """Some `length` consecutive events of which every name is shown once in the clip."""
    shown, events = shows(clip), clip.events
    runs = [events[i : i + length] for i in range(len(events) - length + 1)]
    runs = [run for run in runs if all(len(shown[event.name]) == 1 for event in run)]
    return _pick(rng, runs) if runs else None


def shows(clip: clips.Clip) -> dict[str, list[clips.Event]]:
    """Name -> its events, both in order of time."""
    found: dict[str, list[clips.Event]] = {}
    for event in clip.events:
        found.setdefault(event.name, []).append(event)
    return found


def first_starts(clip: clips.Clip) -> dict[str, float]:
    """Name -> second of its first appearance, in order of time."""
    return {name: events[0].start_s for name, events in shows(clip).items()}


def first_group(start_s: float) -> int:
    """First second of the four-second group in which a picture that starts at `start_s` is seen.

    A sampled frame at the whole second s shows it from s >= start_s on, so the first one that
    does is `ceil(start_s)` — which may lie in the group after the one that holds `start_s`.
    """
    return GROUP_S * (math.ceil(start_s) // GROUP_S)


def chunks_of(span: tuple[float, float], chunk_size: int, chunks: int) -> list[int]:
    """The chunks, counted from 1, with a sampled frame (one a second) in [start, stop) seconds; the longest shown first."""
    seconds = np.arange(np.ceil(span[0]), np.ceil(span[1]))
    numbers = np.minimum(seconds // (GROUP_S * chunk_size), chunks - 1).astype(int) + 1
    shown = np.bincount(numbers)
    return sorted(set(numbers.tolist()), key=lambda number: (-shown[number], number))


def inside(events: Sequence[Sequence[int]], chunks: int) -> list[Sequence[int]]:
    """Those events, given by their chunks, of which no chunk is the first or the last."""
    return [event for event in events if min(event) > 1 and max(event) < chunks]


def article(name: str) -> str:
    """ "a" or "an"."""
    return "an" if name[0] in "aeiou" else "a"


def a(name: str) -> str:
    """The name with its article."""
    return f"{article(name)} {name}"


def is_right(question: Question | Mapping, response: str) -> bool:
    """Whether `response` answers the question; `question` may be the fields read from JSON.

    Case, articles and punctuation do not matter. "exists": the first word decides. "when": the
    first number lies within 4 seconds of the true start. "first", "what" and "between": the right name is
    there and no other picture's. "count": it says how often, and nothing else about that. "order": exactly the right
    names, in the right order.
    """
    if not isinstance(question, Mapping):
        question = dataclasses.asdict(question)
    text, names = response.lower(), pictures.load()[0]
    said = re.findall(r"[a-z]+", text)
    if question["type"] == "exists":
        return said[:1] == [question["answer"]]
    if question["type"] == "when":
        number = re.search(r"\d+(\.\d+)?", text)
        return number is not None and abs(float(number[0]) - question["start_s"]) <= TOLERANCE_S
    if question["type"] == "count":
        return [word for word in said if word in ("once", "twice", "three")] == [question["answer"].split()[0]]
    if question["type"] == "order":
        wanted = [word for word in re.findall(r"[a-z]+", question["answer"]) if word in names]
        return [word for word in said if word in names] == wanted
    return set(said) & set(names) == {question["answer"].split()[-1]}


def chance(kind: str, seconds: float) -> float:
    """Share of right guesses without the video at questions of a type, about a clip of so many seconds."""
    return CHANCES[kind][int(seconds > clips.RANGE_S[1])]


def words() -> list[str]:
    """Every word that questions and answers can hold, except numbers; lower case, sorted."""
    plain = [
        "is",
        "there",
        "a",
        "an",
        "which",
        "comes",
        "first",
        "the",
        "or",
        "when",
        "does",
        "appear",
        "appears",
        "at",
        "seconds",
        "what",
        "yes",
        "no",
        "how",
        "many",
        "times",
        "once",
        "twice",
        "three",
        "between",
        "and",
        "in",
        "order",
        "from",
        "to",
    ]
    return sorted({*plain, *pictures.load()[0]})


def chance_levels(seed: int, clip_count: int, seconds: tuple[int, int] = clips.RANGE_S) -> dict[str, float]:
    """What blind guesses get right over random clips of `seconds`: per type the best constant answer.

    "…, names known" is a guess among the clip's own pictures: seen, but not when. For "between" the two names asked
    about are left out; for "order" their places are known, and that one is between them is guessed, too.
    """
    rng = np.random.default_rng(seed)
    names = pictures.load()[0]
    answers: dict[str, list] = {kind: [] for kind in TYPES}
    among: dict[str, list[float]] = {"what": [], "between": [], "order": []}
    for _ in range(clip_count):
        clip = clips.draw_clip(rng, seconds=int(rng.integers(seconds[0], seconds[1] + 1)), names=names)
        shown = len(shows(clip))
        for question in questions(rng, clip, len(TYPES)):
            said = question.answer
            if question.type == "first":
                said = said.split()[-1] == question.question.rstrip("?").split()[-1]
            answers[question.type].append(question.start_s if question.type == "when" else said)
            if question.type == "what":
                among["what"].append(1 / shown)
            elif question.type == "between":
                among["between"].append(1 / (shown - 2))
            elif question.type == "order":
                among["order"].append(1 / (shown - 2) if len(question.evidence) == 3 else 0.0)
    starts = np.array(answers.pop("when"))
    levels = {kind: max(collections.Counter(found).values()) / len(found) for kind, found in answers.items() if found}
    levels["when"] = float(max(np.mean(abs(starts - n) <= TOLERANCE_S) for n in range(seconds[1])))
    return levels | {f"{kind}, names known": float(np.mean(found)) for kind, found in among.items() if found}


def _pick(rng: np.random.Generator, items: Sequence):
    return items[int(rng.integers(len(items)))]
