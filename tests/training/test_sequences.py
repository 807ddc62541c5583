"""Conversations become the tokens of inference, and samples have few padded sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vxl2_jax as vxl2
from vxl2_jax.checkpoints.fetch import NANO
from vxl2_jax.errors import RequestError
from vxl2_jax.text import prompt
from vxl2_jax.text.tokenizer import Tokenizer
from vxl2_jax.training import sequences

TURNS = (("Is there a dog at 01:05?", "yes, at 64 seconds"), ("And then?", "a car"), ("What else?", "nothing"))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.read(NANO)


def test_tokens_are_those_of_asking_and_every_answer_has_targets(tokenizer):
    stop = tokenizer.encode("<|im_end|>")
    ids, targets = sequences.tokens(tokenizer, stop, TURNS)
    for number, (question, answer) in enumerate(TURNS):
        asked = prompt.suffix_ids(tokenizer, question, TURNS[:number])
        assert ids[: len(asked)].tolist() == asked
        expected = tokenizer.encode(answer) + stop
        assert targets[len(asked) - 1 :][: len(expected)].tolist() == expected
    assert (targets >= 0).sum() == sum(len(tokenizer.encode(answer)) + 1 for _, answer in TURNS)
    assert all(wanted in (-1, following) for wanted, following in zip(targets, ids[1:], strict=False))


def test_a_foreign_tokenizer_is_refused(tokenizer):
    with pytest.raises(RequestError, match="use the tokenizer.json"):
        sequences.tokens(tokenizer, (0,), TURNS)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 2000)), min_size=1, max_size=40))
def test_sizes_hold_their_samples_and_those_below(lengths):
    groups, rows = np.array(lengths).T
    sizes = sequences.sizes(groups, rows)
    assert (sizes[:, 0] >= groups).all() and (sizes[:, 1] >= rows).all()
    by_groups = dict(sizes.tolist())
    assert len({tuple(size) for size in sizes}) == len(by_groups)
    assert sorted(by_groups.values()) == [by_groups[size] for size in sorted(by_groups)]


def test_the_end_of_turn_token_stops_generation():
    """Generation stops at the token that training teaches to end an answer with."""
    assert Tokenizer.read(NANO).encode("<|im_end|>")[0] in vxl2.load("nano").config.stop_tokens
