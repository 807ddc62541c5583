"""How many questions are answered correctly without the video."""

import collections

import numpy as np

from experiments.synthetic import clips, pictures, questions


def chance_levels(seed: int, clip_count: int, seconds: tuple[int, int] = clips.RANGE_S) -> dict[str, float]:
    """Accuracy of the best constant answer by type, over random clips with lengths in `seconds`.

    "TYPE, names known" is the accuracy of guessing among the pictures of the clip. For "between" the two names in the
    question are excluded; for "order" they are in the right place, and the guess is that one picture is between them.
    """
    rng = np.random.default_rng(seed)
    names = pictures.load()[0]
    answers: dict[str, list] = {kind: [] for kind in questions.TYPES}
    among: dict[str, list[float]] = {"what": [], "between": [], "order": []}
    for _ in range(clip_count):
        clip = clips.draw_clip(rng, seconds=int(rng.integers(seconds[0], seconds[1] + 1)), names=names)
        shown = len(questions.shows(clip))
        for question in questions.questions(rng, clip, len(questions.TYPES)):
            answer = question.answer
            if question.type == "first":
                answer = answer.split()[-1] == question.question.rstrip("?").split()[-1]
            answers[question.type].append(question.start_s if question.type == "when" else answer)
            if question.type == "what":
                among["what"].append(1 / shown)
            elif question.type == "between":
                among["between"].append(1 / (shown - 2))
            elif question.type == "order":
                among["order"].append(1 / (shown - 2) if len(question.evidence) == 3 else 0.0)
    starts = np.array(answers.pop("when"))
    levels = {kind: max(collections.Counter(found).values()) / len(found) for kind, found in answers.items() if found}
    levels["when"] = float(max(np.mean(abs(starts - n) <= questions.TOLERANCE_S) for n in range(seconds[1])))
    return levels | {f"{kind}, names known": float(np.mean(found)) for kind, found in among.items() if found}
