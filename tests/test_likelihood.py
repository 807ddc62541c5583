"""The likelihood of given answers is that of the definition."""

import jax
import numpy as np
import toys

from pallas_kernels.attention import REFERENCE
from vxl2_jax import likelihood
from vxl2_jax.cache import views
from vxl2_jax.models import qwen2

PROMPTS = ([7, 3, 11, 30, 2], [7, 3])
ANSWERS = ([9, 4, 59], [5, 59])


def by_definition(toy, clip, prompt: list[int], answer: list[int]) -> float:
    """One whole pass over video, question and answer."""
    ids = np.asarray([*prompt, *answer], np.int32)
    x, _ = toys.whole_pass(toy, toys.embedded(toy, clip, ids), toys.mask_of(clip, toys.RULE, len(ids)))
    logits = qwen2.logits(toy.params["language"], toy.config.language, x[clip.layout.length :])
    logs = jax.nn.log_softmax(logits[len(prompt) - 1 : -1])
    return float(np.take_along_axis(np.asarray(logs), np.asarray(answer)[:, None], 1).sum())


def test_answers_of_different_lengths_are_scored_in_one_pass(toy):
    clip = toys.video()
    ids, count = np.zeros((4, 12), np.int32), np.zeros(4, np.int32)  # the last two rows fill up the batch
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        count[row] = len(prompt) + len(answer)
        ids[row, : count[row]] = prompt + answer
    view = views.dense_view(toys.remembered(toy, clip), REFERENCE, 4)
    lengths = np.asarray([3, 2, 0, 0], np.int32)
    found = likelihood.log_likelihoods(toy.params, toy.config, view, ids, count, lengths, last=5)
    wanted = [by_definition(toy, clip, *pair) for pair in zip(PROMPTS, ANSWERS, strict=True)]
    np.testing.assert_allclose(found, [*wanted, 0, 0], atol=1e-4)
