"""nano's training sees what inference sees: the same logits from its own forward pass and from the package's memory."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import toys

from experiments.nano import composed, directions, initial_heads, language, mixed_caches
from experiments.nano.attention_targets import FINDERS, READERS, question_row
from experiments.parity import assembled
from experiments.synthetic import clips, pictures, questions, vocabulary
from pallas_kernels.attention import REFERENCE
from vxl2_jax import config, decode
from vxl2_jax.cache import views
from vxl2_jax.layout import PrefillRule, natural_mask
from vxl2_jax.sampling import Sampling

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
    visual = (0.1 * rng.standard_normal((GROUPS * composed.VISUAL, shape.language.width))).astype(np.float16)
    drawn = toys.model(shape).params["language"]
    with pytest.MonkeyPatch.context() as patch:
        # Compiling the initialisers, spreading names apart and XLA's optimisations would take most of the time.
        patch.setattr(initial_heads.qwen2, "init", lambda *_: drawn)
        patch.setattr(initial_heads, "spread", lambda count, width: rng.standard_normal((count, width)) * width**-0.5)
        params = {"language": initial_heads.init(jax.random.key(0), shape.language)}
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield shape, params, clip, asked, visual
    jax.config.update("jax_disable_most_optimizations", before)


forward = jax.jit(lambda params, shape, batch: language.forward(params, shape, batch)[0], static_argnums=1)


def batch_of(nano, visible: mixed_caches.Visible) -> dict:
    """The questions as rows of their own."""
    _, _, clip, asked, visual = nano
    rows = [language.row([question_row(clip, question, 0)], language.ROW) for question in asked]
    return {
        **{name: np.stack([row[name] for row in rows]) for name in rows[0]},
        "ids": np.asarray([composed.video_ids(GROUPS)]),
        "visual": visual[None],
        "mask": natural_mask(composed.layout(GROUPS), RULE),
        "video": np.zeros(len(rows), np.int32),
        **visible._asdict(),
    }


def by_inference(nano, view: views.KVCacheView, ids: np.ndarray) -> np.ndarray:
    """Logits [N, vocabulary] of one question's tokens over a cache."""
    shape, params = nano[:2]
    padded = np.pad(ids, (0, language.ROW - len(ids)))[None].astype(np.int32)
    lengths, key = np.full(1, len(ids), np.int32), jax.random.key(0)
    found = decode.generate(params, shape, view, padded, lengths, Sampling(), key, max_new=1, keep_logits=True)
    return np.asarray(found.question_logits[0, language.ROW - len(ids) :])


def remembered(nano, compression: int):
    shape, params, _, _, visual = nano
    layout = composed.layout(GROUPS)
    ids = np.asarray(composed.video_ids(GROUPS), np.int32)[layout.global_positions()]
    tokens = visual.astype(np.float32).reshape(GROUPS, layout.visual, -1)
    return toys.remembered(toys.Toy(shape, params), toys.Video(layout, ids, tokens), RULE, compression)


def check_rows(nano, batch: dict, view_of_row: dict) -> None:
    logits = np.asarray(forward(nano[1]["language"], nano[0].language, batch))
    for i, view in view_of_row.items():
        length = int((batch["part"][i] >= 0).sum())
        wanted = by_inference(nano, view, batch["asked"][i, :length])
        np.testing.assert_allclose(logits[i, :length], wanted, atol=1e-4)


def test_dense(nano):
    view = views.dense_view(remembered(nano, 8), REFERENCE)
    check_rows(nano, batch_of(nano, mixed_caches.whole(GROUPS, 7)), {0: view, 4: view})


@pytest.mark.parametrize(
    "compression",
    [
        mixed_caches.COMPRESSIONS[0],
        *(pytest.param(one, marks=pytest.mark.slow) for one in mixed_caches.COMPRESSIONS[1:]),
    ],
)
def test_mixed(nano, compression, monkeypatch):
    monkeypatch.setattr(mixed_caches, "COMPRESSIONS", (compression,))
    visible, _ = mixed_caches.draw(np.random.default_rng(1), nano[3], GROUPS)
    memory, found = remembered(nano, compression), {}
    for i in (1, 5):
        # A group is dense where its own visual tokens are visible.
        first = memory.layout.visual_positions()[:: composed.VISUAL]
        plan = assembled.plan_mixed(memory.layout, compression, 1, np.concatenate([[True], visible.allowed[i, first]]))
        assert len(plan.store) == visible.allowed[i].sum() == visible.base[i]
        found[i] = assembled.assembled_view(memory, plan)
    check_rows(nano, batch_of(nano, visible), found)


def test_evidence_is_dense_where_it_is_relevant(nano, monkeypatch):
    asked = nano[3]
    monkeypatch.setattr(mixed_caches, "RELEVANT", 1.0)
    visible, answered = mixed_caches.draw(np.random.default_rng(2), asked, GROUPS)
    places = composed.layout(GROUPS).visual_positions().reshape(GROUPS, composed.VISUAL)
    for question, allowed in zip(asked, visible.allowed, strict=True):
        for start, stop in question.evidence:
            assert allowed[places[int(np.ceil(start)) // 4 : (int(np.ceil(stop)) - 1) // 4 + 1]].all()
    assert answered.all() and len(answered) == len(asked)


def test_attention_should_find_the_evidence(nano):
    """Whatever the type, what heads should find lies within the evidence, and what they should read is a name or a
    number of the row."""
    clip = nano[2]
    names, words = pictures.load()[0], vocabulary.words()
    for seed, kind in enumerate(4 * questions.TYPES):
        question = questions.ask(np.random.default_rng(seed), clip, kind)
        if question is None:
            continue
        row = question_row(clip, question, 0)
        spans = [(int(np.ceil(a)) // 4, (int(np.ceil(b)) - 1) // 4) for a, b in question.evidence]
        wanted = [one for one in row["find"].reshape(-1, 3) if one[0] >= 0]
        assert bool(wanted) == bool(question.evidence)
        assert all(any(a <= first <= last <= b for a, b in spans) for first, last, _ in wanted)
        read = {words[row["asked"][place]] for place in row["read"][row["read"] >= 0]}
        assert read and all(word in names or word.isdigit() for word in read)
    assert row["find"].shape[1] == len(FINDERS) and row["read"].shape[1] == len(READERS)


def test_near_in_time_is_near_in_angle():
    numbers = directions.embedding()[vocabulary.number_ids()][:, directions.TIME]
    near, far = numbers[100] @ numbers[101], numbers[100] @ numbers[200]
    assert near > 2 * abs(far)
