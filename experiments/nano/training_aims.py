"""What the tokens of a question and its answer should find, for the losses on attention."""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np

from experiments.synthetic import clips, pictures, questions, vocabulary
from vxl2_jax.text import prompt

FRAMES = 4
ABSENT, NOWHERE = -1, -2  # instead of a first group: there is none and that should be found; nothing is wanted


class Kind(IntEnum):
    """What sort of thing a token looks for; 0 is nothing."""

    NAME = 1  # a name in a question: where it is first shown
    NUMBER = 2  # a number in a question: its moment
    EXISTS = 3  # tokens that are to give an answer, by type
    FIRST = 4
    WHEN = 5
    WHAT = 6
    COUNT = 7
    FOLLOWER = 8  # what is shown after some name
    START = 9  # the name that an order starts with
    LISTED = 10  # a name in an answer: whether the order ends with it


def question_row(clip: clips.Clip, question: questions.Question, offset: int) -> dict[str, np.ndarray]:
    """One question's tokens, targets and what its tokens should find.

    Returns, [N] each: asked, the tokens; place, the token's number; type; answer, the next token where it is to be
    predicted, else −1; kind (0 or a Kind); aim_name, index of a name; and [N, 2]: look, up to two places in the
    question to read (−1 none); aim, aim_second, aim_third: first and last group where the name is to be found in that
    appearance (ABSENT where there is none, NOWHERE where nothing is wanted).
    """
    before = vocabulary.encode(prompt.suffix_text(question.question))
    after = [*vocabulary.encode(question.answer), vocabulary.SPECIAL.index("<|im_end|>")]
    length = len(before) + len(after) - 1
    row = {key: np.full(length, fill) for key, fill in (("answer", -1), ("kind", 0), ("aim_name", 0))}
    row |= {key: np.full((length, 2), NOWHERE) for key in ("aim", "aim_second", "aim_third")}
    row["look"] = np.full((length, 2), -1)
    row["asked"], row["place"] = np.array((before + after)[:-1]), np.arange(length)
    row["type"] = np.full(length, questions.TYPES.index(question.type))
    row["answer"][len(before) - 1 :] = after
    names, words = pictures.load()[0], [vocabulary.words()[token] for token in (*before, *after)]
    shown = questions.shows(clip)
    named = [i for i, word in enumerate(words[: len(before)]) if word in names]
    numbers = [i for i, word in enumerate(words[: len(before)]) if word.isdigit()]

    def want(place: int, kind: Kind, name: str = names[0], look: tuple[int, ...] = (), **aims: tuple[int, int]) -> None:
        row["kind"][place], row["aim_name"][place] = kind, names.index(name)
        row["look"][place, : len(look)] = look
        for key, groups in aims.items():
            row[key][place] = groups

    for i in named:
        want(i, Kind.NAME, words[i], aim=_first_group(shown.get(words[i])))
    answering, kind = len(before) - 1, question.type
    places = range(answering, answering + (1 if kind in ("exists", "count") else 2))
    if kind == "what":
        moment = (int(words[numbers[0]]) - offset) // FRAMES
        said = question.answer.split()[-1]
        want(numbers[0], Kind.NUMBER, said, aim=(moment, moment))
        for place in places:
            want(place, Kind.WHAT, said, look=numbers, aim=(moment, moment))
    elif kind in ("exists", "first", "when"):
        name = question.answer.split()[-1] if kind == "first" else words[named[0]]
        for place in places:
            want(place, Kind[kind.upper()], name, look=named, aim=_first_group(shown.get(name)))
    elif kind == "count":
        name = words[named[0]]
        spans = [_span(event) for event in shown[name]] + 2 * [(ABSENT, ABSENT)]
        aims = dict(zip(("aim", "aim_second", "aim_third"), spans, strict=False))
        want(answering, Kind.COUNT, name, look=named, **(aims | {"aim": _first_group(shown[name])}))
    elif kind == "between":
        for place in places:
            want(
                place,
                Kind.FOLLOWER,
                question.answer.split()[-1],
                look=named[:1],
                aim=_span(shown[question.answer.split()[-1]][0]),
            )
    elif kind == "order":
        last = words[named[1]]
        for place in places:
            want(place, Kind.START, look=named[:1])
        listed = [i for i in range(len(before), length) if words[i] in names]
        for i, following in zip(listed, (*listed[1:], None), strict=True):
            want(i, Kind.LISTED, look=(named[1], i) if words[i] == last else (i,))
            if following is not None:
                name = words[following]
                for place in (following - 2, following - 1):
                    want(place, Kind.FOLLOWER, name, look=(i,), aim=_span(shown[name][0]))
    return row


def _span(event: clips.Event) -> tuple[int, int]:
    """First and last group whose sampled frames show an event."""
    return math.ceil(event.start_s) // FRAMES, (math.ceil(event.stop_s) - 1) // FRAMES


def _first_group(events: list[clips.Event] | None) -> tuple[int, int]:
    if not events:
        return ABSENT, ABSENT
    return (math.ceil(events[0].start_s) // FRAMES,) * 2
