"""The question pass, decoding and sampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from pallas_kernels.attention import REFERENCE
from vxl2_jax import decode, sampling
from vxl2_jax.cache import views
from vxl2_jax.layout import Layout
from vxl2_jax.models import qwen2
from vxl2_jax.relevance import selection
from vxl2_jax.sampling import Sampling

QUESTION = np.asarray([7, 3, 11, 30, 2], np.int32)


def dense_view(memory) -> views.KVCacheView:
    return views.dense_view(memory, REFERENCE)


def answer(toy, view, question=QUESTION, count=None, max_new=6, sampling=Sampling(), seed=0, **options):
    """Of one question, without the batch's axis."""
    count = np.full(1, len(question) if count is None else count, np.int32)
    return jax.tree.map(
        lambda of_batch: of_batch[0],
        decode.generate(
            toy.params,
            toy.config,
            view,
            question[None],
            count,
            sampling,
            jax.random.key(seed),
            max_new=max_new,
            **options,
        ),
    )


def stopping_at(toy, *tokens: int):
    return toys.Toy(dataclasses.replace(toy.config, stop_tokens=tokens), toy.params)


def by_whole_passes(toy, clip, steps: int) -> tuple[list[int], np.ndarray]:
    """Greedy decoding the slow way: the whole prompt anew for every token."""
    ids, rows = np.pad(QUESTION, (0, steps)), []  # what follows a token has no effect on it
    mask = toys.mask_of(clip, toys.RULE, len(ids))

    @jax.jit
    def whole_pass(x):
        x, _ = toys.whole_pass(toy, x, mask)
        return qwen2.logits(toy.params["language"], toy.config.language, x[clip.layout.length :])

    for step in range(len(QUESTION), len(ids)):
        rows.append(np.asarray(whole_pass(toys.embedded(toy, clip, ids))[step - 1]))
        ids[step] = rows[-1].argmax()
    return ids[len(QUESTION) :].tolist(), np.stack(rows)


def test_greedy_decoding_equals_repeated_whole_passes(toy):
    clip = toys.video()
    tokens, logits = by_whole_passes(toy, clip, 6)
    found = answer(toy, dense_view(toys.remembered(toy, clip)), keep_logits=True)
    assert found.tokens.tolist() == tokens
    np.testing.assert_allclose(found.logits, logits, atol=1e-4)


def test_padding_behind_the_question_does_not_matter(toy):
    view = dense_view(toys.remembered(toy, toys.video()))
    plain = answer(toy, view)
    padded = answer(toy, view, np.concatenate([QUESTION, [9, 9, 9]]).astype(np.int32), count=5)
    assert padded.tokens.tolist() == plain.tokens.tolist()


def test_a_fully_dense_mixed_cache_answers_as_the_dense_level(toy):
    memory = toys.remembered(toy, toys.video(1))
    mixed = views.mixed_view(memory, 2, selection.dense_chunks(4, None)[None], REFERENCE)
    want, got = (answer(toy, view, keep_logits=True) for view in (dense_view(memory), mixed))
    np.testing.assert_allclose(got.logits, want.logits, atol=1e-4)


def test_layers_kept_apart_answer_as_stacked_ones(toy):
    memory = toys.remembered(toy, toys.video())
    want = answer(toy, dense_view(memory), keep_logits=True)
    # Its arrays are freed, so the toy keeps its own.
    apart = qwen2.separate_layers(jax.tree.map(jnp.copy, toy.params["language"]))
    params = toy.params | {"language": apart}
    got = answer(toys.Toy(toy.config, params), dense_view(memory), keep_logits=True)
    np.testing.assert_allclose(got.logits, want.logits, atol=1e-5)

    def attend(q, k, v, state, layer):
        return q, state + k.sum()

    x = jnp.ones((4, toy.config.language.width))
    for last in (False, True):
        stacked, separate = (
            qwen2.run_layers(p["language"], toy.config.language, x, attend, jnp.zeros(()), last_keys_only=last)
            for p in (toy.params, params)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stacked, separate)


def test_answers_stop_at_a_stop_token_and_count_it(toy):
    view = dense_view(toys.remembered(toy, toys.video()))
    tokens = answer(toy, view).tokens.tolist()
    stop = next(t for t in tokens[1:] if t != tokens[0])
    found = answer(stopping_at(toy, 59, stop), view)
    place = tokens.index(stop)
    assert int(found.count) == place + 1
    assert found.tokens.tolist() == tokens[:place] + [stop] * (6 - place)


def test_an_answer_without_stop_token_uses_all_its_steps(toy):
    found = answer(toy, dense_view(toys.remembered(toy, toys.video())))
    assert toy.config.stop_tokens[0] not in found.tokens.tolist() and int(found.count) == 6


def test_drawing_depends_on_the_key_alone(toy):
    view = dense_view(toys.remembered(toy, toys.video()))
    hot = Sampling(np.float32(2.0), np.float32(1.0))
    draws = [answer(toy, view, sampling=hot, seed=seed).tokens.tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_a_tiny_top_p_is_greedy(toy):
    view = dense_view(toys.remembered(toy, toys.video()))
    narrow = Sampling(np.float32(1.5), np.float32(1e-6))
    assert answer(toy, view, sampling=narrow, seed=3).tokens.tolist() == answer(toy, view).tokens.tolist()


@pytest.mark.parametrize("top_p", [1e-6, 0.2, 0.5, 0.9, 0.999])
def test_the_nucleus_is_the_smallest_set_with_that_much_probability(top_p):
    rng = np.random.default_rng(0)
    logits = np.round(4 * rng.normal(size=300), 1).astype(np.float32)  # with ties
    kept = np.asarray(sampling._nucleus(jnp.asarray(logits - logits.max()), top_p))
    probability = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    inside, outside = probability[kept], probability[~kept]
    assert inside.sum() >= top_p - 1e-6 and inside.min() > outside.max(initial=0)
    assert inside[inside > inside.min()].sum() < top_p  # without its least probable ones it is too small


def test_drawing_follows_temperature_and_top_p():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 4000)

    def shares(temperature: float, top_p: float) -> np.ndarray:
        drawn = jax.vmap(lambda key: sampling.sample(logits, Sampling(temperature, top_p), key))(keys)
        return np.bincount(drawn, minlength=4) / len(keys)

    np.testing.assert_allclose(shares(1.0, 1.0), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(shares(1.0, 0.7), [0.625, 0.375, 0, 0], atol=0.03)
    cold = np.asarray([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(shares(0.5, 1.0), cold / cold.sum(), atol=0.03)
    np.testing.assert_array_equal(shares(0.0, 1.0), [1, 0, 0, 0])


def test_a_second_question_and_a_second_video_of_like_length_compile_nothing(toy):
    def watch_and_ask(clip, question, dense):
        memory = toys.remembered(toy, clip)
        mixed = views.mixed_view(memory, 2, selection.dense_chunks(4, dense)[None], REFERENCE)
        for view in (dense_view(memory), mixed):
            answer(toy, view, question, keep_logits=True)

    compiled = []

    def listener(event, duration, **_):
        return compiled.append(event) if "backend_compile" in event else None

    watch_and_ask(toys.video(), QUESTION, [2])
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        watch_and_ask(toys.video(5), QUESTION[::-1].copy(), [3])
        watch_and_ask(toys.video(6, Layout(6, (4, 3, 4, 3, 5, 4, 5), 4)), QUESTION, [2])
        assert not compiled
        jax.jit(lambda x: x + len(compiled))(np.zeros(3))
        assert compiled, "the listener must hear compilations, or this test says nothing"
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_real_sizes_trace():
    from vxl2_jax.config import video_xl_2 as real
    from vxl2_jax.models import video_xl_2

    config, shape = real(), jax.ShapeDtypeStruct
    params = jax.eval_shape(lambda k: video_xl_2.init(k, config), shape((2,), jnp.uint32))
    params = jax.tree.map(lambda a: shape(a.shape, jnp.bfloat16), params)
    stream = decode.KVCache(*(shape((28, 4, 120_000, 128), jnp.bfloat16) for _ in "kv"))
    view = views.whole_view((stream,), [100_000], REFERENCE, 16)

    def run(p, streams, ids):
        return decode.generate(
            p,
            config,
            view._replace(streams=streams),
            ids,
            jnp.full(16, 68),
            Sampling(),
            jax.random.key(0),
            max_new=16,
        )

    assert jax.eval_shape(run, params, (stream,), shape((16, 80), jnp.int32)).tokens.shape == (16, 16)


def test_sums_of_layers_may_exceed_float16(toy):
    """The residual stream of a float16 model is wider: the layers add up to more than its largest number."""

    def run(dtype):
        params = jax.tree.map(lambda a: a.astype(jnp.float16).astype(dtype), toy.params["language"])
        params["layers"]["down"]["kernel"] *= jnp.asarray(28_000, dtype)
        x = qwen2.embed(params, toy.config.language, QUESTION)
        x, _ = qwen2.run_layers(params, toy.config.language, x, lambda q, k, v, state, layer: (q, state))
        return np.asarray(x, np.float32), np.asarray(qwen2.logits(params, toy.config.language, x))

    (want_x, want), (got_x, got) = run(jnp.float32), run(jnp.float16)
    assert np.abs(want_x).max() > np.finfo(np.float16).max and np.isfinite(got_x).all()
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 0.01


def test_logits_that_are_not_finite_are_marked(toy):
    memory = toys.remembered(toy, toys.video())
    broken = jax.tree.map(lambda a: a, toy.params)
    broken["language"]["norm"] = {"scale": toy.params["language"]["norm"]["scale"] * jnp.inf}
    for params, finite in ((toy.params, True), (broken, False)):
        ids, count = np.stack([QUESTION, QUESTION]), np.asarray([5, 0], np.int32)
        view = views.dense_view(memory, REFERENCE, 2)
        found = decode.generate(params, toy.config, view, ids, count, Sampling(), jax.random.key(0), max_new=1)
        assert np.asarray(found.finite).tolist() == [finite, True]
