"""Many questions about one memory in one call: the same answers as one by one."""

import dataclasses
import json

import numpy as np
import pytest

import vxl2_jax as vxl2
from vxl2_jax import decode, generate, hardware, relevance

from .conftest import ASKED, noise

QUESTIONS = ["is there 7?", "what?", "what is there at 12 13 14 15?", "is it 3 or 4 at 5?", "is there a user?"]
OPTIONS = generate.AskOptions(**ASKED)


def one_by_one(model, memory, questions, options=OPTIONS, history=()):
    return [generate.ask(model, memory, question, options, history) for question in questions]


def assert_alike(found, wanted):
    """The same answers; scores, which sums in another order may change, within 1e-5."""

    def without_scores(answer):
        return dataclasses.replace(
            answer, chunks=tuple(dataclasses.replace(chunk, score=0.0) for chunk in answer.chunks)
        )

    assert [without_scores(answer) for answer in found] == [without_scores(answer) for answer in wanted]

    def scores(answers):
        return [chunk.score for answer in answers for chunk in answer.chunks]

    np.testing.assert_allclose(scores(found), scores(wanted), atol=1e-5)


@pytest.mark.parametrize(
    ("count", "filled", "sizes"),
    [
        (5, False, [4, 4, 4, 4, 1]),
        (3, True, [3] * 3),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(1, False, [1]), (2, False, [2, 2]), (5, True, [5] * 5)]
        ),
    ],
)
def test_a_batch_is_answered_as_one_by_one(model, memory, count, filled, sizes):
    """In full batches, as on a CPU, and in one that is filled up, as on accelerators."""
    model = dataclasses.replace(model, sizes=model.sizes._replace(fills_batches=filled))
    found = generate.ask_many(model, memory, QUESTIONS[:count], OPTIONS, ())
    assert_alike(found, one_by_one(model, memory, QUESTIONS[:count]))
    assert [answer.batch for answer in found] == sizes


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 5.0, "seed": 3},
        pytest.param({"top_k": None}, marks=pytest.mark.slow),
        pytest.param({"top_k": 0}, marks=pytest.mark.slow),
        {"relevance": "random", "seed": 4},
        {"relevance": lambda ids, memory: np.arange(5) * ids[7] % 7},
    ],
    ids=["drawn", "dense", "edges", "at random", "a function"],
)  # fmt: skip
def test_all_options_hold_for_each_question_of_a_batch(model, memory, change):
    options = dataclasses.replace(OPTIONS, **change)
    wanted = one_by_one(model, memory, QUESTIONS[:4], options)
    assert_alike(generate.ask_many(model, memory, QUESTIONS[:4], options, ()), wanted)


@pytest.mark.slow
def test_a_batch_continues_until_its_last_question_stops(model, memory):
    """A token that the answers have at different steps is made a stop token."""
    options = dataclasses.replace(OPTIONS, temperature=1.0)
    token_lists = [answer.tokens for answer in one_by_one(model, memory, QUESTIONS[:4], options)]

    def places(token):
        return {tokens.index(token) if token in tokens else -1 for tokens in token_lists}

    stop = max(sorted({token for tokens in token_lists for token in tokens}), key=lambda token: len(places(token)))
    stopping = dataclasses.replace(model, config=dataclasses.replace(model.config, stop_tokens=(stop,)))
    wanted = one_by_one(stopping, memory, QUESTIONS[:4], options)
    assert len({len(answer.tokens) for answer in wanted}) > 1 and any(answer.stopped for answer in wanted)
    assert_alike(generate.ask_many(stopping, memory, QUESTIONS[:4], options, ()), wanted)


@pytest.mark.slow
def test_history_comes_before_every_question(model, memory):
    (first,) = one_by_one(model, memory, QUESTIONS[:1])
    wanted = one_by_one(model, memory, QUESTIONS[1:3], history=[first])
    assert_alike(generate.ask_many(model, memory, QUESTIONS[1:3], OPTIONS, [first]), wanted)
    fresh = one_by_one(model, memory, QUESTIONS[1:3])
    assert [answer.tokens for answer in wanted] != [answer.tokens for answer in fresh]


@pytest.mark.slow
def test_an_oracle_may_set_chunks_and_compression_for_each_question(model, clip, tmp_path):
    def category(chunk_size, compression, units):
        return {
            "config": {"selected_topk": None, "selected_chunk_size": chunk_size, "compression": compression},
            "selected_unit_indices": {f"clip.mp4_{question}": found for question, found in units.items()},
        }

    oracle = {
        "a": category(2, 2, {"what?": [2, 99], "is it?": []}), "b": category(3, None, {"is there 7?": [1], "7?": [2]})
    }  # fmt: skip
    (tmp_path / "oracle.json").write_text(json.dumps(oracle))
    options, memory = (
        generate.AskOptions(relevance=f"oracle:{tmp_path}/oracle.json", max_new_tokens=3),
        model.watch(clip),
    )
    questions = ["what?", "is there 7?", "is it?", "7?"]
    found = generate.ask_many(model, memory, questions, options, ())
    assert_alike(found, one_by_one(model, memory, questions, options))
    assert [answer.batch for answer in found] == [1, 2, 1, 2] and found[2].cache_ratio == 1


def test_other_questions_of_a_batch_compile_nothing(model):
    compiled = (decode.generate, relevance.chunk_attention)
    sets = [QUESTIONS[:4], QUESTIONS[1:], QUESTIONS[::-1][:4], ["what?"] * 4, [f"is it {n}?" for n in range(4)]]
    sizes = []
    for seed, questions in enumerate(sets):
        generate.ask_many(model, model.watch(noise(40 - seed, seed=seed)), questions, OPTIONS, ())
        sizes.append([function._cache_size() for function in compiled])
    assert all(size == sizes[0] for size in sizes)


def test_watching_and_asking_clear_the_jit_caches(model, memory, monkeypatch):
    cleared = []
    monkeypatch.setattr(hardware, "clear_jit_caches", lambda: cleared.append(True))
    model.watch(noise(8))
    assert len(cleared) == 1
    generate.ask_many(model, memory, QUESTIONS[:1], OPTIONS, ())
    assert len(cleared) == 2


@pytest.mark.slow
def test_more_questions_than_a_batch_holds_and_none_at_all(model, memory):
    many = [f"is there {n}?" for n in range(17)]
    found = generate.ask_many(model, memory, many, dataclasses.replace(OPTIONS, max_new_tokens=2), ())
    assert [answer.question for answer in found] == many
    assert [answer.batch for answer in found] == [16] * 16 + [1]
    assert generate.ask_many(model, memory, [], OPTIONS, ()) == []


def test_one_empty_question_is_refused_before_any_is_asked(model, memory):
    def scorer(ids, memory):
        raise AssertionError("asked")

    with pytest.raises(vxl2.RequestError, match="empty"):
        generate.ask_many(model, memory, ["what?", " "], dataclasses.replace(OPTIONS, relevance=scorer), ())
