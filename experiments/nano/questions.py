"""Questions about a clip, their answers, and whether a response is right."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from nano import clips, pictures

TYPES = ("exists", "first", "when", "what")
GROUP_S = 4  # seconds a group of four sampled frames covers at one frame per second
TOLERANCE_S = 4  # how far from the true start a "when" answer may lie
# Share of "when" questions that the best constant answer gets right; measured by
# `chance_levels` over clips of 32 to 64 seconds.
WHEN_CHANCE = 0.25


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
      question, answer: the text as asked and as expected back.
      type: one of TYPES.
      chance: share of such questions that the best guess without the video gets right.
      start_s: for "when", the true start in seconds (offset included); else None.
    """

    question: str
    answer: str
    type: str
    chance: float
    start_s: float | None = None


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
            question = ask(rng, clip, question.type, offset_s)
        result.append(question)
    return result


def ask(rng: np.random.Generator, clip: clips.Clip, kind: str, offset_s: int = 0) -> Question | None:
    """One question of one type, or None where the clip does not allow it."""
    starts = first_starts(clip)
    names = pictures.load()[0]
    if kind == "exists":
        absent = [name for name in names if name not in starts]
        present = rng.random() < 0.5 if absent else True
        name = _pick(rng, list(starts) if present else absent)
        return Question(f"Is there {article(name)} {name}?", "yes" if present else "no", kind, 0.5)
    if kind == "first":
        pairs = [(a, b) for a in starts for b in starts if starts[b] - starts[a] >= GROUP_S]
        if not pairs:
            return None
        pair = _pick(rng, pairs)
        one, other = pair if rng.random() < 0.5 else pair[::-1]
        return Question(f"Which comes first, the {one} or the {other}?", f"the {pair[0]}", kind, 0.5)
    if kind == "when":
        shown = list(starts)
        # The first picture of nearly every clip starts within the first seconds. Asked about as
        # often as the others, it would let a constant answer do well.
        weights = np.array([0.5] + [1.0] * (len(shown) - 1))
        name = shown[int(rng.choice(len(shown), p=weights / weights.sum()))]
        return Question(
            f"When does the {name} first appear?",
            f"at {first_group(starts[name]) + offset_s} seconds",
            kind,
            WHEN_CHANCE,
            starts[name] + offset_s,
        )
    if kind == "what":
        event = _pick(rng, clip.events)
        t = int(rng.integers(math.ceil(event.start_s + 1), math.floor(event.stop_s - 1) + 1))
        return Question(
            f"What appears at {t + offset_s} seconds?", f"{article(event.name)} {event.name}", kind, 1 / len(names)
        )
    raise ValueError(f"unknown question type {kind!r}; known: {', '.join(TYPES)}")


def first_starts(clip: clips.Clip) -> dict[str, float]:
    """Name -> second of its first appearance, in order of time."""
    starts: dict[str, float] = {}
    for event in clip.events:
        starts.setdefault(event.name, event.start_s)
    return starts


def first_group(start_s: float) -> int:
    """First second of the four-second group in which a picture that starts at `start_s` is seen.

    A sampled frame at the whole second s shows it from s >= start_s on, so the first one that
    does is `ceil(start_s)` — which may lie in the group after the one that holds `start_s`.
    """
    return GROUP_S * (math.ceil(start_s) // GROUP_S)


def article(name: str) -> str:
    """ "a" or "an"."""
    return "an" if name[0] in "aeiou" else "a"


def is_right(question: Question | Mapping, response: str) -> bool:
    """Whether `response` answers the question; `question` may be the fields read from JSON.

    Case, articles and punctuation do not matter. "exists": the first word decides. "when": the
    first number lies within 4 seconds of the true start. "first" and "what": the right name is
    there and no other picture's.
    """
    if not isinstance(question, Mapping):
        question = dataclasses.asdict(question)
    text = response.lower()
    said = re.findall(r"[a-z]+", text)
    if question["type"] == "exists":
        return said[:1] == [question["answer"]]
    if question["type"] == "when":
        number = re.search(r"\d+(\.\d+)?", text)
        return number is not None and abs(float(number[0]) - question["start_s"]) <= TOLERANCE_S
    return set(said) & set(pictures.load()[0]) == {question["answer"].split()[-1]}


def chance(question: Question | str) -> float:
    """Share of right guesses without the video, for a question or a type."""
    kind = question if isinstance(question, str) else question.type
    return {"exists": 0.5, "first": 0.5, "when": WHEN_CHANCE, "what": 1 / len(pictures.load()[0])}[kind]


def words() -> list[str]:
    """Every word that questions and answers can hold, except numbers; lower case, sorted."""
    plain = ("is there a an which comes first the or when does appear appears at seconds what yes no").split()
    return sorted({*plain, *pictures.load()[0]})


def chance_levels(seed: int, clip_count: int = 4000) -> dict[str, float]:
    """Measured: how often the best blind answer is right, by type, over clips of 32 to 64 s.

    For "exists", "first" (first or second named) and "what" the blind answer is the most frequent
    one; for "when" the constant that lies within the tolerance most often. "what, names known" is
    a guess among the clip's own pictures: seen, but not when.
    """
    rng = np.random.default_rng(seed)
    names = pictures.load()[0]
    answers: dict[str, list] = {kind: [] for kind in TYPES}
    among = []
    for _ in range(clip_count):
        clip = clips.draw_clip(rng, seconds=clips.draw_seconds(rng), names=names)
        for question in questions(rng, clip, len(TYPES)):
            if question.type == "when":
                answers["when"].append(question.start_s)
            elif question.type == "first":
                one, _, _, other = question.question.rstrip("?").split()[-4:]
                answers["first"].append(question.answer.split()[-1] == other)
            else:
                answers[question.type].append(question.answer)
            if question.type == "what":
                among.append(1 / len(first_starts(clip)))
    levels = {
        kind: float(np.unique(answers[kind], return_counts=True)[1].max() / len(answers[kind]))
        for kind in ("exists", "first", "what")
    }
    starts = np.array(answers["when"])
    levels["when"] = float(max(np.mean(abs(starts - n) <= TOLERANCE_S) for n in range(64)))
    levels["what, names known"] = float(np.mean(among))
    return levels


def _pick(rng: np.random.Generator, items: Sequence):
    return items[int(rng.integers(len(items)))]
