"""Answers in pieces, and answers chosen among given texts, through the public interface."""

import dataclasses

import numpy as np
import pytest

import vxl2_jax as vxl2
from vxl2_jax import decode

from .conftest import ASKED, noise
from .test_questions import assert_alike

QUESTIONS = ("is there 7?", "what?", "what is there at 12?")


@pytest.mark.parametrize(
    "options",
    [ASKED, pytest.param({"top_k": None, "max_new_tokens": 6}, marks=pytest.mark.slow)],
    ids=["bi-level", "dense"],
)
def test_a_streamed_answer_is_the_answer(model, memory, options):
    """Its length is no multiple of the steps per piece."""
    for question in QUESTIONS:
        stream = model.stream(memory, question, **options)
        pieces = list(stream)
        assert_alike([stream.answer], [model.ask(memory, question, **options)])
        assert "".join(pieces) == stream.answer.text and len(pieces) > 1 and all(pieces)
        assert list(stream) == [] and stream.answer is not None


def test_a_drawn_answer_stops_at_a_stop_token_and_compiles_nothing_new(model, memory):
    options = {**ASKED, "temperature": 2.0}
    free = model.ask(memory, "what?", **options).tokens
    stopping = dataclasses.replace(model, config=dataclasses.replace(model.config, stop_tokens=(free[2],)))
    wanted = free[: free.index(free[2]) + 1]
    sizes = []
    for question in ("what?", "is it 3?"):
        stream = stopping.stream(memory, question, **options)
        text = "".join(stream)
        assert text == stream.answer.text
        if question == "what?":
            assert stream.answer.tokens == wanted and stream.answer.stopped
        sizes.append((decode.begin_decoding._cache_size(), decode.continue_decoding._cache_size()))
    assert sizes[0] == sizes[1]


def test_wrong_streams_are_refused_before_anything_runs(model, memory):
    for question, options in (("  ", {}), (["what?"], {}), ("what?", {"top_k": -1}), ("what?", {"history": ["a"]})):
        with pytest.raises((vxl2.RequestError, TypeError)):
            model.stream(memory, question, **options)
    with pytest.raises(vxl2.RequestError, match="another model"):
        model.stream(memory.replace(model="other"), "what?")


def test_the_most_likely_choice_is_the_answer(model, memory):
    choices = [["7", "there is", "what"], ["8", "you"]]
    found = model.ask(memory, QUESTIONS[:2], choices=choices, **ASKED)
    for answer, offered in zip(found, choices, strict=True):
        scores = [choice.score for choice in answer.choices]
        assert [choice.text for choice in answer.choices] == offered and np.isfinite(scores).all()
        assert answer.text == offered[int(np.argmax(scores))] and answer.stopped
    alone = [
        model.ask(memory, question, choices=offered, **ASKED)
        for question, offered in zip(QUESTIONS, choices, strict=False)
    ]
    np.testing.assert_allclose(
        [choice.score for answer in alone for choice in answer.choices],
        [choice.score for answer in found for choice in answer.choices],
        atol=1e-4,
    )
    (job,) = model.answer_all([vxl2.Job(noise(40), list(QUESTIONS[:2]), choices)], ask=ASKED)
    assert [answer.text for answer in job.answers] == [answer.text for answer in found]


@pytest.mark.parametrize("choices", ["ab", [], [""]])
def test_wrong_choices_are_refused(model, memory, choices):
    with pytest.raises(vxl2.RequestError, match="choice"):
        model.ask(memory, "what?", choices=choices)
    with pytest.raises(vxl2.RequestError, match="choice"):
        model.ask(memory, ["what?", "is it?"], choices=[["a"]])
