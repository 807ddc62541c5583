"""Scores per chunk."""

import numpy as np
import pytest
import toys

from vxl2_jax import decode, relevance

QUESTION = np.asarray([7, 3, 11, 30, 2, 0, 0, 0], np.int32)


def request_of(toy, memory, chunk_size=2, question=QUESTION, count=5, seed=0) -> relevance.Request:
    return relevance.Request(toy.params, toy.config, memory, question, count, chunk_size, seed)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 9])
def test_attention_scores_are_shares_of_one(toy, chunk_size):
    memory = toys.remembered(toy, toys.video())
    scores = relevance.by_attention(request_of(toy, memory, chunk_size))
    assert scores.shape == (memory.layout.chunks(chunk_size),)
    assert (scores > 0).all() and scores.sum() == pytest.approx(1.0, abs=1e-5)


def test_chunks_share_out_what_their_groups_receive(toy):
    memory = toys.remembered(toy, toys.video())
    groups = relevance.by_attention(request_of(toy, memory, 1))
    pairs = relevance.by_attention(request_of(toy, memory, 2))
    np.testing.assert_allclose(pairs, np.add.reduceat(groups, [0, 2, 4, 6]), atol=1e-5)


def test_attention_mass_is_what_the_layers_attend(toy):
    """Against weights computed in the open, from the sparse level of a video pre-filled densely."""
    clip = toys.video(1)
    memory = toys.remembered(toy, clip, toys.Rule(prev_blocks=None), compression=1)
    count, length = 5, memory.sparse_length
    base = decode.Base((memory.sparse,), np.asarray([length], np.int32), np.int32(length))
    mass = np.asarray(relevance.attention_mass(toy.params, toy.config, base, QUESTION, np.int32(count)))
    total = weights_of_a_whole_pass(toy, clip, QUESTION[:count])
    np.testing.assert_allclose(mass[:length], total, atol=1e-5)
    assert not mass[length:].any(), "keys past the end receive nothing"


def weights_of_a_whole_pass(toy, clip, question) -> np.ndarray:
    """Mean attention [L] of a question's tokens on prefix and video over layers and heads."""
    config, length, weights = toy.config.language, clip.layout.length, []
    x = toys.embedded(toy, clip, question)
    toys.whole_pass(toy, x, np.tri(len(x), dtype=bool), weights)
    assert len(weights) == config.layers
    return np.mean([w[:, length:, :length].mean(axis=(0, 1)) for w in weights], axis=0)


def test_a_chunk_that_the_question_attends_to_scores_highest(toy):
    """Its keys are made longer than the others'."""
    memory = toys.remembered(toy, toys.video(2))
    kept = memory.layout.visual // memory.compression
    rows = memory.layout.visual_positions(kept).reshape(memory.layout.groups, kept)
    plain = relevance.by_attention(request_of(toy, memory))
    for chunk in range(4):  # 0 is the first video chunk
        places = rows[2 * chunk : 2 * chunk + 2].ravel()
        # A longer key attracts some queries strongly and repels others: on the whole it gains.
        planted = memory.replace(sparse=memory.sparse._replace(k=memory.sparse.k.at[:, :, places].multiply(8.0)))
        scores = relevance.by_attention(request_of(toy, planted))
        assert scores.argmax() == chunk and scores[chunk] > plain[chunk]


@pytest.mark.parametrize("scorer", [relevance.uniform, relevance.random, relevance.recent])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 9])
def test_scorers_give_one_distinct_number_per_chunk(toy, scorer, chunk_size):
    memory = toys.remembered(toy, toys.video())
    scores = scorer(request_of(toy, memory, chunk_size))
    assert scores.shape == (memory.layout.chunks(chunk_size),) and len(set(scores.tolist())) == len(scores)


def test_recent_prefers_the_end_and_random_only_its_seed(toy):
    memory = toys.remembered(toy, toys.video())
    assert (np.diff(relevance.recent(request_of(toy, memory))) > 0).all()
    draws = [relevance.random(request_of(toy, memory, seed=seed)).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("chunks", [4, 8, 16, 32])
def test_uniform_spreads_its_best_chunks(toy, chunks):
    layout = toys.Layout(5, (3,) * chunks, 4)
    scores = relevance.uniform(request_of(toy, toys.remembered(toy, toys.video(0, layout)), 1))
    best = np.sort(np.argsort(-scores)[: chunks // 2])
    assert np.diff(best).max() <= 3, "half of the chunks leave no gap wider than three"
