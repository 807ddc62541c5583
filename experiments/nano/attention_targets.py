"""What some attention heads should find when a question's tokens are processed, for the loss on their attention.

Heads, as (layer, head), are those whose first parameters `initial_heads` designs.
"""

from __future__ import annotations

import numpy as np

from experiments.nano.composed import groups_of
from experiments.nano.frames import FRAMES
from experiments.synthetic import clips, pictures, questions, vocabulary
from vxl2_jax.text import prompt

# These find groups of the video: where a name appears (first, for the second, for the third time), the moment of a
# number, where an answer's tokens find the name or time that they need, and what follows a name.
FINDERS = {
    "name": (2, 0),
    "second": (3, 0),
    "third": (4, 0),
    "number": (2, 1),
    "evidence": (3, 1),
    "moment": (3, 2),
    "follower": (3, 3),
}
# These read tokens of the question and the answer so far: its name, its number, the name whose follower is wanted, and
# where a name in the answer occurs in the question.
READERS = {"name": (1, 1), "number": (1, 2), "followed": (1, 3), "listed": (2, 2)}
UNUSED, ABSENT = -2, -1  # instead of the first group: nothing is wanted; nothing is to be found


def question_row(clip: clips.Clip, question: questions.Question, offset_s: int) -> dict[str, np.ndarray]:
    """A question's N tokens as arrays.

    Returns:
      asked [N]: the tokens; place [N]: their numbers; type [N]; answer [N]: the next token where it is predicted, else
      −1; find [N, 7, 3]: for each of FINDERS the first and the last group and the picture that it should find there; read
      [N, 4, 2]: for each of READERS up to two tokens that it should read, −1 none.
    """
    before = vocabulary.encode(prompt.suffix_text(question.question))
    ids = [*before, *vocabulary.encode(question.answer), vocabulary.SPECIAL.index("<|im_end|>")]
    length, start = len(ids) - 1, len(before) - 1
    find, read = np.full((length, len(FINDERS), 3), UNUSED), np.full((length, len(READERS), 2), -1)
    names, words = pictures.load()[0], [vocabulary.words()[i] for i in ids]
    shown = questions.shows(clip)
    named = [i for i, word in enumerate(words) if word in names]
    listed = [i for i in named if i > start]
    named = [i for i in named if i <= start]

    def should_find(head: str, places: list[int], name: str, groups: tuple[int, int]) -> None:
        find[places, list(FINDERS).index(head)] = *groups, names.index(name)

    def should_read(head: str, places: list[int], tokens: list[int]) -> None:
        read[places, list(READERS).index(head), : len(tokens)] = tokens

    def appearance(name: str, number: int = 0) -> tuple[int, int]:
        events = shown.get(name, [])
        return groups_of(events[number]) if number < len(events) else (ABSENT, ABSENT)

    def first_group(name: str) -> tuple[int, int]:
        return (appearance(name)[0],) * 2

    for i in named:
        should_find("name", [i], words[i], first_group(words[i]))
    kind = question.type
    answering = [start] if kind in ("exists", "count") else [start, start + 1]
    last = words[named[0]] if kind in ("exists", "when", "count") else words[listed[-1]]
    if kind == "what":
        number = next(i for i, word in enumerate(words) if word.isdigit())
        moment = ((int(words[number]) - offset_s) // FRAMES,) * 2
        should_find("number", [number], last, moment)
        should_find("moment", answering, last, moment)
        should_read("number", answering, [number])
    elif kind in ("exists", "first", "when", "count"):
        should_read("name", answering, named)
        should_find("name" if kind in ("when", "count") else "evidence", answering, last, first_group(last))
        if kind == "count":
            should_find("second", answering, last, appearance(last, 1))
            should_find("third", answering, last, appearance(last, 2))
    elif kind == "between":
        should_read("followed", answering, named[:1])
        should_find("follower", answering, last, appearance(last))
    else:  # order
        should_read("name", answering, named[:1])
        for i in listed:
            should_read("listed", [i], [named[1], i] if i == listed[-1] else [i])
        for i, following in zip(listed, listed[1:], strict=False):
            places = [following - 2, following - 1]
            should_read("followed", places, [i])
            should_find("follower", places, words[following], appearance(words[following]))
    answer = np.where(np.arange(length) >= start, ids[1:], -1)
    kinds = np.full(length, questions.TYPES.index(kind))
    return {
        "asked": np.array(ids[:-1]),
        "place": np.arange(length),
        "type": kinds,
        "answer": answer,
        "find": find,
        "read": read,
    }
