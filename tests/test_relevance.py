"""Scores per chunk."""

import numpy as np
import pytest
import toys

from pallas_kernels import attention
from pallas_kernels.attention import REFERENCE
from vxl2_jax import relevance
from vxl2_jax.cache import views

QUESTION = np.asarray([7, 3, 11, 30, 2, 0, 0, 0], np.int32)


def request_of(toy, memory, chunk_size=2, question=QUESTION, count=5, seed=0) -> relevance.ScorerInputs:
    return relevance.ScorerInputs(toy.params, toy.config, memory, question[None], np.full(1, count), chunk_size, seed)


def scored(scorer, request) -> np.ndarray:
    """Scores [chunks] of the one question."""
    (scores,) = scorer(request)
    return scores


@pytest.mark.parametrize("scorer", [relevance.repositioned_attention, relevance.attention_mass_scores])
@pytest.mark.parametrize(
    "chunk_size", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow), 9]
)
def test_attention_scores_are_shares_of_one(toy, scorer, chunk_size):
    memory = toys.remembered(toy, toys.video())
    scores = scored(scorer, request_of(toy, memory, chunk_size))
    assert scores.shape == (memory.layout.chunks(chunk_size),)
    assert (scores > 0).all() and scores.sum() == pytest.approx(1.0, abs=1e-5)


def test_chunks_share_out_the_mass_their_groups_receive(toy):
    memory = toys.remembered(toy, toys.video())
    groups = scored(relevance.attention_mass_scores, request_of(toy, memory, 1))
    pairs = scored(relevance.attention_mass_scores, request_of(toy, memory, 2))
    np.testing.assert_allclose(pairs, np.add.reduceat(groups, [0, 2, 4, 6]), atol=1e-5)


@pytest.mark.parametrize(
    ("chunk_size", "count"),
    [pytest.param(1, 5, marks=pytest.mark.slow), (2, 8), (3, 1), pytest.param(9, 5, marks=pytest.mark.slow)],
)
def test_a_question_looks_at_each_chunk_from_right_behind_it(toy, chunk_size, count):
    """Against a plain statement: prefix, one chunk moved to behind it, the question; shares of all chunks."""
    memory = toys.remembered(toy, toys.video(3))
    layout, config = memory.layout, toy.config
    starts, stops, _ = relevance.chunk_table(memory, chunk_size).slots
    question = QUESTION[:count]

    def keys_of(layer):
        return np.asarray(memory.sparse.k[layer]).swapaxes(0, 1)

    x, queries = read_alone(toy, memory, question)
    wanted = np.zeros(layout.chunks(chunk_size))
    for layer in range(config.language.layers):
        logits = []
        for start, stop in zip(starts[: len(wanted)], stops, strict=False):
            keys = toys.turned(keys_of(layer)[start:stop], np.full(stop - start, layout.prefix - int(stop)), config)
            keys = np.repeat(keys, config.language.heads // config.language.kv_heads, axis=1)
            scores = np.einsum("nhd,shd->hns", queries[layer], keys) * config.language.head_width**-0.5
            logits.append(np.log(np.exp(scores).sum(axis=-1)))
        shares = np.exp(logits) / np.exp(logits).sum(axis=0)  # [chunks, heads, tokens]
        wanted += (shares.max(axis=-1) - shares.mean(axis=-1)).mean(axis=-1) / config.language.layers
    wanted = np.maximum(wanted, 1e-9)
    got = scored(relevance.repositioned_attention, request_of(toy, memory, chunk_size, count=count))
    np.testing.assert_allclose(got, wanted / wanted.sum(), atol=2e-5)


def read_alone(toy, memory, question):
    """A question behind the prefix alone: (residual stream, per layer its rotated queries float64 [n, H, D])."""
    clip = toys.video(3)
    table = np.asarray(toy.params["language"]["embed"])
    prefix = memory.layout.prefix
    rows = table[np.concatenate([clip.global_ids[:prefix], question])]
    seen = []
    x, _ = toys.whole_pass(toy, rows, np.tri(len(rows), dtype=bool), queries=seen)
    return x, [toys.turned(q, np.arange(len(rows)), toy.config)[prefix:] for q in seen]


def test_attention_mass_is_what_the_layers_attend(toy):
    """Against weights computed in the open, from the sparse level of a video pre-filled densely."""
    clip = toys.video(1)
    memory = toys.remembered(toy, clip, toys.PrefillRule(prev_blocks=None), compression=1)
    count, length = 5, memory.sparse_length
    view = views.sparse_view(memory, REFERENCE)
    mass = np.asarray(relevance.mass_per_key(toy.params, toy.config, view, QUESTION[None], np.full(1, count)))[0]
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


@pytest.mark.parametrize("scorer", [relevance.repositioned_attention, relevance.attention_mass_scores])
def test_a_chunk_that_the_question_attends_to_scores_highest(toy, scorer):
    """Its keys are made longer than the others'."""
    memory = toys.remembered(toy, toys.video(2))
    kept = memory.layout.visual // memory.compression
    rows = memory.layout.visual_positions(memory.compression).reshape(memory.layout.groups, kept)
    plain = scored(scorer, request_of(toy, memory))
    for chunk in range(4):  # 0 is the first video chunk
        places = rows[2 * chunk : 2 * chunk + 2].ravel()
        # A longer key attracts some queries strongly and repels others: on the whole it gains.
        planted = memory.replace(sparse=memory.sparse._replace(k=memory.sparse.k.at[:, :, places].multiply(8.0)))
        scores = scored(scorer, request_of(toy, planted))
        assert scores.argmax() == chunk and scores[chunk] > plain[chunk]


@pytest.mark.parametrize("scorer", [relevance.uniform, relevance.random, relevance.recent])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 9])
def test_scorers_give_one_distinct_number_per_chunk(toy, scorer, chunk_size):
    memory = toys.remembered(toy, toys.video())
    scores = scored(scorer, request_of(toy, memory, chunk_size))
    assert scores.shape == (memory.layout.chunks(chunk_size),) and len(set(scores.tolist())) == len(scores)


def test_recent_prefers_the_end_and_random_only_its_seed(toy):
    memory = toys.remembered(toy, toys.video())
    assert (np.diff(scored(relevance.recent, request_of(toy, memory))) > 0).all()
    draws = [scored(relevance.random, request_of(toy, memory, seed=seed)).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("chunks", [4, 8, 16, 32])
def test_uniform_spreads_its_best_chunks(toy, chunks):
    layout = toys.Layout(5, (3,) * chunks, 4)
    scores = scored(relevance.uniform, request_of(toy, toys.remembered(toy, toys.video(0, layout)), 1))
    best = np.sort(np.argsort(-scores)[: chunks // 2])
    assert np.diff(best).max() <= 3, "half of the chunks leave no gap wider than three"


def test_one_call_of_a_kernel_scores_as_chunk_by_chunk(toy):
    """The TPU kernel, interpreted; layers are scanned, and the questions of a batch are of different lengths."""
    memory = toys.remembered(toy, toys.video(3))
    kernel = attention.choose_kernel("tpu", dtype="float32", width=toy.config.language.head_width).kernel
    assert kernel.moves_ranges(toy.config.language.head_width)
    ids, count = np.stack([QUESTION, QUESTION[::-1]]), np.asarray([5, 8], np.int32)
    table = relevance.chunk_table(memory, 2)
    options = {"width": table.width, "chunks": table.chunks}
    got, want = (
        relevance.chunk_attention(
            toy.params, toy.config, views.prefix_view(memory, each, 2), table.slots, ids, count, kernel=each, **options
        )
        for each in (kernel, REFERENCE)
    )
    np.testing.assert_allclose(got, want, atol=2e-6)
