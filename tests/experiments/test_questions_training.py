"""Training sees what inference sees: the same logits from its own forward pass and from the package's memory."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import toys

from experiments.nano import training_compose, training_language, training_mixed, training_rows, training_start
from experiments.nano.training_aims import question_row
from experiments.nano.training_compose import LONGEST, fit
from experiments.parity import assembled
from experiments.synthetic import clips, pictures, questions, vocabulary
from pallas_kernels.attention import REFERENCE
from vxl2_jax import config, decode
from vxl2_jax.cache import views
from vxl2_jax.layout import PrefillRule

GROUPS = 10
RULE = PrefillRule(2, 2)


@pytest.fixture(scope="module")
def nano():
    """A model with its initial parameters, random visual tokens, and questions about a clip."""
    shape = config.nano(len(vocabulary.words()))
    shape = replace(shape, vision=replace(shape.vision, layers=1))
    rng = np.random.default_rng(0)
    clip = clips.draw_clip(rng, seconds=4 * GROUPS, names=pictures.load()[0])
    asked = questions.questions(rng, clip, 7)
    visual = (0.1 * rng.standard_normal((GROUPS * training_compose.VISUAL, shape.language.width))).astype(np.float16)
    drawn, count = toys.model(shape).params["language"], len(training_rows.names())
    with pytest.MonkeyPatch.context() as patch:
        # Compiling the initialisers, spreading names apart and XLA's optimisations would take most of the time.
        patch.setattr(training_start.qwen2, "init", lambda *_: drawn)
        patch.setattr(training_start, "_apart", lambda width: rng.standard_normal((count, width)) * width**-0.5)
        params = {"language": training_start.init(jax.random.key(0), shape.language)}
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield shape, params, clip, asked, visual
    jax.config.update("jax_disable_most_optimizations", before)


forward = jax.jit(training_language.forward, static_argnums=1)


def batch_of(clip, asked, visual) -> dict:
    """The questions as rows of their own."""
    rows = [question_row(clip, question, 0) for question in asked]
    fill = {"answer": -1, "look": -1}
    batch = {key: np.stack([fit(row[key], LONGEST, fill.get(key, 0)) for row in rows]) for key in rows[0]}
    batch["part"] = np.stack([fit(np.zeros(len(row["asked"])), LONGEST, -1) for row in rows])
    return {
        **batch,
        "ids": np.asarray([training_compose.video_ids(GROUPS, 0)]),
        "visual": visual[None],
        "lengths": np.asarray([len(row["asked"]) for row in rows]),
    }


def by_inference(nano, view: views.KVCacheView, ids: np.ndarray) -> np.ndarray:
    """Logits [N, vocabulary] of one question's tokens over a cache."""
    shape, params = nano[:2]
    found = decode.generate(
        params,
        shape,
        view,
        fit(ids, LONGEST, 0)[None],
        np.full(1, len(ids), np.int32),
        decode.Sampling(),
        jax.random.key(0),
        max_new=1,
        keep_logits=True,
    )
    return np.asarray(found.question_logits[0, LONGEST - len(ids) :])


def remembered(nano, compression: int):
    shape, params, _, _, visual = nano
    layout = training_language.layout(GROUPS)
    ids = np.asarray(training_compose.video_ids(GROUPS, 0), np.int32)[layout.global_positions()]
    tokens = visual.astype(np.float32).reshape(GROUPS, layout.visual, -1)
    return toys.remembered(toys.Toy(shape, params), toys.Video(layout, ids, tokens), RULE, compression)


def test_dense(nano):
    shape, params, clip, asked, visual = nano
    batch = batch_of(clip, asked, visual)
    lengths, memory = batch.pop("lengths"), remembered(nano, 8)
    view = views.dense_view(memory, REFERENCE)
    mask = training_language.video_mask(GROUPS, RULE)
    for i in (0, 4):
        one = {key: value if key in ("ids", "visual") else value[i : i + 1] for key, value in batch.items()}
        logits, _ = forward(params["language"], shape.language, one, mask)
        wanted = by_inference(nano, view, batch["asked"][i, : lengths[i]].astype(np.int32))
        np.testing.assert_allclose(np.asarray(logits[0, : lengths[i]]), wanted, atol=1e-4)


@pytest.mark.parametrize("compression", training_mixed.POOLS)
def test_mixed(nano, compression, monkeypatch):
    shape, params, clip, asked, visual = nano
    monkeypatch.setattr(training_mixed, "POOLS", (compression,))
    drawn = training_mixed.draw(np.random.default_rng(1), [asked], GROUPS)
    batch = batch_of(clip, asked, visual)
    lengths, memory = batch.pop("lengths"), remembered(nano, compression)
    mask = training_language.video_mask(GROUPS, RULE)
    logits, _ = forward(params["language"], shape.language, batch, mask, drawn)
    stamps = memory.layout.global_positions()[memory.layout.prefix :]
    for i in (1, 5):
        index = drawn["index"][i][drawn["real"][i]]
        # A group is dense where its own visual tokens follow its timestamp.
        dense = np.concatenate([[True], np.isin(stamps + 1, index)])
        plan = assembled.plan_mixed(memory.layout, compression, 1, dense)
        assert len(plan.store) == len(index)
        view = assembled.assembled_view(memory, plan)
        wanted = by_inference(nano, view, batch["asked"][i, : lengths[i]].astype(np.int32))
        np.testing.assert_allclose(np.asarray(logits[i, : lengths[i]]), wanted, atol=1e-4)


def test_evidence_is_dense_where_it_is_chosen(nano, monkeypatch):
    _, _, clip, asked, _ = nano
    monkeypatch.setattr(training_mixed, "CHOSEN", 1.0)
    drawn = training_mixed.draw(np.random.default_rng(2), [asked], GROUPS)
    layout = training_language.layout(GROUPS)
    for i, question in enumerate(asked):
        held = set(drawn["index"][i][drawn["real"][i]])
        for start, stop in question.evidence:
            groups = range(int(np.ceil(start)) // 4, (int(np.ceil(stop)) - 1) // 4 + 1)
            assert {int(p) for g in groups for p in layout.visual_positions()[9 * g : 9 * g + 9]} <= held
    assert drawn["answered"].all() and len(drawn["video"]) == len(asked)
