"""Answers of a toy model, with what it was not trained on; see `scope`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vxl2_jax import planning
from vxl2_jax.errors import ToyModelWarning
from vxl2_jax.memory import VideoMemory
from vxl2_jax.runtime import Runtime

_SHOWN = 3
"""Reasons in one warning."""


def with_doubts(model: Runtime, memory: VideoMemory, answers: Sequence[Any], history: Sequence[Any] = ()) -> list[Any]:
    """Answers about a memory with their `doubts` filled in; unchanged if the model is no toy.

    Warns (ToyModelWarning) if there are any doubts. history: previous answers, if the questions continue a conversation.
    """
    if model.scope is None:
        return list(answers)
    video = {"generated": memory.generated, "seconds": memory.end_s, "follows": bool(history)}
    answers = [replace(answer, doubts=model.scope.doubts(answer.question, **video)) for answer in answers]
    if reasons := list(dict.fromkeys(reason for answer in answers for reason in answer.doubts)):
        more = f", and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        warnings.warn(
            f"{model.name} is a toy model, and this is outside of what it was trained on: {'; '.join(reasons[:_SHOWN])}{more}. It knows "
            f"{model.scope.summary}. For real videos: {planning.how_to_use_the_real_model()}",
            ToyModelWarning,
            stacklevel=4,  # the caller of `Model.ask` with one question
        )
    return answers
