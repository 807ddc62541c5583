"""Multiple-choice questions about clips. Wrong options are answers to other questions of the same type."""

import re
from typing import NamedTuple

import numpy as np

from experiments.synthetic import clips, pictures
from experiments.synthetic.questions import questions

OPTIONS = 4  # at most
_TRIES = 40  # clips drawn to find wrong options


class MultipleChoice(NamedTuple):
    """One question.

    Attributes:
      video: name of the clip.
      seconds: length of the clip.
      number: the question's index among those drawn for the clip.
      type: one of `questions.TYPES`.
      question, options: the texts.
      correct: index of the correct option.
      span: seconds from the first to the last event that the answer depends on; the whole clip if there is none.
    """

    video: str
    seconds: float
    number: int
    type: str
    question: str
    options: tuple[str, ...]
    correct: int
    span: tuple[float, float]


def draw(rng: np.random.Generator, video: str, clip: clips.Clip, count: int) -> list[MultipleChoice]:
    """`count` random questions about a clip, less those for which no wrong option is found."""
    names, found = pictures.load()[0], []
    for number, one in enumerate(questions(rng, clip, count)):
        pair = re.search(r"the (\w+) or the (\w+)\?", one.question)
        wrong = {f"the {name}" for name in pair.groups()} if pair else set()
        for _ in range(_TRIES):
            if pair or len(wrong - {one.answer}) >= OPTIONS - 1:
                break
            other = clips.draw_clip(rng, seconds=round(clip.seconds), names=names)
            wrong |= {q.answer for q in questions(rng, other, 1, types=(one.type,)) if q.type == one.type}
        options = [one.answer, *rng.permutation(sorted(wrong - {one.answer})).tolist()[: OPTIONS - 1]]
        order = rng.permutation(len(options))
        seen = [second for span in one.evidence for second in span] or [0.0, clip.seconds]
        if len(options) > 1:
            texts, correct = tuple(options[i] for i in order), int(np.argmin(order))
            span = min(seen), max(seen)
            found.append(MultipleChoice(video, clip.seconds, number, one.type, one.question, texts, correct, span))
    return found
