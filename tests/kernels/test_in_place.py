"""Reading a cache as runs, in place, against the assembled cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st
from problems import backends

from pallas_kernels import attention
from pallas_kernels import decode as in_place
from vxl2_jax import decode
from vxl2_jax.cache import plan as cache_plan
from vxl2_jax.cache import views
from vxl2_jax.layout import Layout
from vxl2_jax.relevance import selection


@st.composite
def questions(draw, most: int = 5):
    """Chunks that each of some questions about a random video has dense: (dense bool [B, chunks + 1], of a layout's
    mixtures the plans slot by slot, and the runs). All-false rows fill the batch up."""
    groups = draw(st.integers(1, 40))
    stamps = tuple(draw(st.lists(st.integers(1, 6), min_size=groups, max_size=groups)))
    layout = Layout(draw(st.integers(1, 9)), stamps, draw(st.sampled_from([4, 10, 12])))
    chunk_size, compression = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    chunks = layout.chunks(chunk_size)
    chosen = draw(st.lists(st.lists(st.integers(1, chunks), max_size=6), min_size=1, max_size=most))
    dense = np.stack([selection.dense_chunks(chunks, np.asarray(each, int)) for each in chosen])
    rule = layout, compression, chunk_size
    return (
        dense,
        [cache_plan.plan_mixed(*rule, row) for row in dense],
        [cache_plan.plan_runs(*rule, row) for row in dense],
    )


def slots(start, stop, shift) -> list[tuple[int, int, int]]:
    """(stream, index, shift) of every key of ranges [S, R] with shifts [R], sorted."""
    return sorted(
        (stream, index, int(shift[run]))
        for stream, run in np.ndindex(start.shape)
        for index in range(start[stream, run], stop[stream, run])
    )


def wanted(plan: cache_plan.MixedPlan) -> list[tuple[int, int, int]]:
    return sorted(zip(plan.store.tolist(), plan.index.tolist(), plan.shift.tolist(), strict=True))


def interior(dense: np.ndarray) -> int:
    return int(dense[:, 2:-1].sum(axis=1).max())


@given(asked=questions(1), items=st.integers(0, 60))
def test_runs_and_items_hold_every_slot_once_with_its_shift(asked, items):
    dense, (plan,), (runs,) = asked
    assert slots(runs.start, runs.stop, runs.shift) == wanted(plan)
    room = 2 * interior(dense) + 3
    assert len(runs.shift) <= room, "the bound on runs that bases.py relies on"
    cut = in_place.split_segments(runs, items=room + items, room=room, multiple=4)
    assert slots(cut.first, cut.stop, cut.shift[cut.run]) == wanted(plan)


@given(asked=questions(), items=st.integers(0, 60), padding=st.booleans())
def test_shared_runs_hold_every_slot_of_every_question_once_with_its_shift(asked, items, padding):
    dense, plans, each = asked
    if padding:
        nothing = np.zeros((2, 3, 0), np.int32)
        each = [*each, in_place.Segments(*nothing, np.zeros(0, np.int32))]
    runs = in_place.merge_segments(each)
    room = 3 * len(plans) * interior(dense) + 3
    assert len(runs.shift) <= room, "the bound on runs that bases.py relies on"
    cut = in_place.split_segments(runs, items=room + items, room=room, multiple=4)
    every = slots(cut.first, cut.stop, cut.shift[cut.run, 0])
    assert len({place[:2] for place in every}) == len(every), "no key is read twice"
    for number, plan in enumerate(plans):
        reads = cut.asked[cut.run, number]
        assert slots(cut.first[:, reads], cut.stop[:, reads], cut.shift[cut.run[reads], number]) == wanted(plan)
    assert not cut.asked[:, len(plans) :].any()
    assert cut.asked[cut.run[(cut.stop > cut.first).any(axis=0)]].any(axis=1).all(), "nothing is read for no one"


def test_too_many_runs_are_refused():
    runs = in_place.Segments(*np.asarray([[[0, 0, 9]], [[4, 4, 12]]], np.int32), np.asarray([0, 0, 1], np.int32))
    with pytest.raises(ValueError, match="3 runs do not fit in a room of 2"):
        in_place.split_segments(runs, items=8, room=2)


@pytest.mark.parametrize("count", [1, 3])
def test_shapes_of_items_do_not_depend_on_what_was_chosen(count):
    memory = toys.remembered(toys.model(), toys.video())
    kernel = attention.choose_kernel("tpu", dtype="float32", width=16).kernel

    def dense_of(n):
        return np.stack([selection.dense_chunks(4, np.asarray([2 + (n + n * row) % 2])) for row in range(count)])

    dense = map(dense_of, (0, 1))
    items = (views.mixed_view(memory, 2, rows, kernel).items for rows in dense)
    assert len({str(jax.tree.map(np.shape, each)) for each in items}) == 1


QUESTIONS = np.asarray([[7, 3, 11, 30, 2], [9, 2, 40, 0, 0], [0, 0, 0, 0, 0]], np.int32)
COUNTS = np.asarray([5, 3, 0], np.int32)
"""Two questions, and none at all, which fills the batch up."""


def logits_of(toy, memory, chosen, kernel: attention.Kernel) -> np.ndarray:
    """Of the real tokens of the questions and of two new ones [tokens, vocabulary], over chunks `chosen` for each."""
    count = len(chosen or COUNTS)
    if chosen is None:
        base = views.dense_view(memory, kernel, count)
    else:
        dense = np.stack([selection.dense_chunks(4, np.asarray(each, int)) for each in chosen])
        base = views.mixed_view(memory, 2, dense & (COUNTS[:count, None] > 0), kernel)
    found = decode.generate(
        toy.params,
        toy.config,
        base,
        QUESTIONS[:count],
        COUNTS[:count],
        decode.Sampling(),
        jax.random.key(0),
        max_new=2,
        keep_logits=True,
        kernel=kernel,
    )
    real = [np.asarray(found.question_logits)[n, 5 - COUNTS[n] :] for n in range(count)]
    return np.concatenate([*real, *np.asarray(found.logits)[COUNTS[:count] > 0]])


@pytest.mark.parametrize(("name", "dtype", "tolerance"), backends(2e-5, 6e-2))
@pytest.mark.parametrize("chosen", [[[2]], [[2], [3], []], None], ids=["one", "many", "dense"])
def test_questions_over_runs_in_place_equal_those_over_assembled_caches(name, dtype, tolerance, chosen):
    language = dataclasses.replace(toys.CONFIG.language, layers=2)
    toy = toys.model(dataclasses.replace(toys.CONFIG, language=language))
    memory = toys.remembered(toy, toys.video())
    memory = memory.replace(**jax.tree.map(lambda a: a.astype(dtype), {"dense": memory.dense, "sparse": memory.sparse}))
    kernel = attention.choose_kernel(name, dtype=dtype, width=toy.config.language.head_width).kernel
    assert kernel.name == name and kernel.interpret
    np.testing.assert_allclose(
        logits_of(toy, memory, chosen, kernel), logits_of(toy, memory, chosen, attention.REFERENCE), atol=tolerance
    )


def tiles_of_16_rows(name: str) -> attention.Kernel:
    kernel = attention.choose_kernel(name, dtype="float32", width=16).kernel
    return dataclasses.replace(kernel, by_rows=kernel.by_rows[:1])


@pytest.mark.parametrize("name", ["tpu", "ampere"])
def test_many_questions_stand_in_the_rows_and_see_only_their_own_tail(name):
    """Two questions of three tokens, tails side by side: keys of the memory are read once for both. The second does
    not ask for the last run."""
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    stream, tail = (attention.KVCache(normal(1, 2, n, 16), normal(1, 2, n, 16)) for n in (80, 16))
    q, second = normal(6, 4, 16), np.arange(6) >= 3
    asked = np.stack([np.ones(6, bool), ~second])
    runs = in_place.Segments(*np.asarray([[[0, 48]], [[32, 80]]], np.int32), np.zeros((2, 6), np.int32), asked)
    items = in_place.split_segments(runs, items=5, room=2, multiple=16)
    k_start = np.where(second, 8, 0)
    k_end = k_start + np.asarray([1, 2, 3, 1, 2, 3], np.int32)
    reads = in_place.plan_segments(tiles_of_16_rows(name), items, k_start, k_end, repeats=2)
    both, lse = in_place.attend(jnp.stack([q, q]), q, (stream,), tail, reads)
    for part, last in (slice(0, 3), 80), (slice(3, 6), 48):
        ranges = np.asarray([[0] * 3, [48] * 3, k_start[part]]), np.asarray([[32] * 3, [last] * 3, k_end[part]])
        alone = attention.plan_attention(attention.REFERENCE, *ranges, heads=4, streams=(stream, stream, tail))
        want, want_lse = attention.attend(q[part], (stream, stream, tail), alone)
        np.testing.assert_allclose(both[part], want, atol=1e-5)
        np.testing.assert_allclose(lse[part], want_lse, atol=1e-5)


@pytest.mark.parametrize("name", ["tpu", "ampere"])
def test_tiles_of_padding_alone_read_nothing(name):
    items = in_place.split_segments(
        in_place.Segments(*np.asarray([[[0]], [[64]]], np.int32), np.zeros(1, np.int32)), items=2, room=1
    )
    k_end = np.arange(16) < 8  # eight queries see a key of the tail, eight are padding: with two heads each, a tile
    work = in_place.plan_segments(tiles_of_16_rows(name), items, np.zeros(16, int), k_end.astype(int), repeats=2).work
    keys = np.asarray(work.stop - work.first).sum(axis=0)
    assert keys[work.query % 2 == 0].sum() == 65 and not keys[work.query % 2 == 1].any()
