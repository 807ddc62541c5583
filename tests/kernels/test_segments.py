"""Reading a cache as segments, in place, against the cache assembled slot by slot."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st
from problems import backends

from experiments.parity.assembled import MixedPlan, assembled_view, plan_mixed
from pallas_kernels import attention
from pallas_kernels import decode as in_place
from pallas_kernels.attention import tile_schedule
from pallas_kernels.attention.tile_sizes import TileSizes
from vxl2_jax import decode
from vxl2_jax.cache import plan, views
from vxl2_jax.layout import Layout
from vxl2_jax.relevance import selection
from vxl2_jax.sampling import Sampling


@st.composite
def questions(draw, maximum: int = 5):
    """Random questions about a random video: (dense chunks bool [B, C + 1], the mixed caches slot by slot, and their
    segments)."""
    groups = draw(st.integers(1, 40))
    lengths = tuple(draw(st.lists(st.integers(1, 6), min_size=groups, max_size=groups)))
    layout = Layout(draw(st.integers(1, 9)), lengths, draw(st.sampled_from([4, 10, 12])))
    chunk_size, compression = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    chunks = layout.chunks(chunk_size)
    chosen = draw(st.lists(st.lists(st.integers(1, chunks), max_size=6), min_size=1, max_size=maximum))
    dense = np.stack([selection.dense_chunks(chunks, np.asarray(each, int)) for each in chosen])
    rule = layout, compression, chunk_size
    return (
        dense,
        [plan_mixed(*rule, row) for row in dense],
        [plan.plan_segments(*rule, row) for row in dense],
    )


def slots(start, end, shift) -> list[tuple[int, int, int]]:
    """(stream, index, shift) of every key of ranges [S, R] with shifts [R], sorted."""
    return sorted(
        (stream, index, int(shift[segment]))
        for stream, segment in np.ndindex(start.shape)
        for index in range(start[stream, segment], end[stream, segment])
    )


def wanted(plan: MixedPlan) -> list[tuple[int, int, int]]:
    return sorted(zip(plan.store.tolist(), plan.index.tolist(), plan.shift.tolist(), strict=True))


def interior(dense: np.ndarray) -> int:
    return int(dense[:, 2:-1].sum(axis=1).max())


@given(asked=questions(1), items=st.integers(0, 60))
def test_segments_and_items_hold_every_slot_once_with_its_shift(asked, items):
    dense, (slot_plan,), (segments,) = asked
    assert slots(segments.k_start, segments.k_end, segments.shift) == wanted(slot_plan)
    assert segments.length == len(slot_plan.store)
    capacity = 2 * interior(dense) + 3
    assert len(segments.shift) <= capacity, "the bound that views.py relies on"
    split = in_place.split_segments(segments, items=capacity + items, capacity=capacity, keys=4)
    assert slots(split.item_start, split.item_end, split.shift[split.segment]) == wanted(slot_plan)


@given(asked=questions(), programs=st.integers(1, 40), keys=st.sampled_from([4, 16, 64]))
def test_programs_have_equal_shares_of_whole_key_tiles(asked, programs, keys):
    """Every program has as many tiles as each other, but for the last, which has room for the tail."""
    _, slot_plans, each = asked
    merged = in_place.merge_segments(each)
    capacity = len(merged.shift) + 2
    items = capacity + programs
    split = in_place.split_segments(merged, items=items, capacity=capacity, keys=keys, programs=programs)
    every = slots(split.item_start, split.item_end, split.shift[split.segment, 0])
    assert len({place[:2] for place in every}) == len(every) == merged.length, "every key is read once"
    for number, slot_plan in enumerate(slot_plans):
        used = split.used[split.segment, number]
        shift = split.shift[split.segment[used], number]
        assert slots(split.item_start[:, used], split.item_end[:, used], shift) == wanted(slot_plan)
    start, end = split.item_start, split.item_end
    align = min(keys, 16)
    tiles = np.where(end > start, -(-(end - start // align * align) // keys), 0).sum(axis=0)
    shares = np.add.reduceat(np.append(tiles, 0), np.minimum(split.first_item[:-1], items))
    shares = np.where(split.first_item[1:] > split.first_item[:-1], shares, 0)
    assert split.first_item[0] == 0 and split.first_item[-1] == items and shares.sum() == tiles.sum()
    assert shares.max() == -(-(tiles.sum() + 1) // programs) or shares.max() == tiles.sum()
    assert shares[-1] < max(shares.max(), 1) or programs == 1, "the tail has room"
    whole = -(-(merged.k_end - merged.k_start // align * align) // keys)
    assert tiles.sum() == np.where(merged.k_end > merged.k_start, whole, 0).sum(), "dividing adds no tiles"


@given(asked=questions(), items=st.integers(0, 60), padding=st.booleans())
def test_merged_segments_hold_every_slot_of_every_question_once_with_its_shift(asked, items, padding):
    dense, slot_plans, each = asked
    if padding:
        each = [*each, in_place.no_segments(3)]
    segments = in_place.merge_segments(each)
    capacity = 3 * len(slot_plans) * interior(dense) + 3
    assert len(segments.shift) <= capacity, "the bound that views.py relies on"
    split = in_place.split_segments(segments, items=capacity + items, capacity=capacity, keys=4)
    every = slots(split.item_start, split.item_end, split.shift[split.segment, 0])
    assert len({place[:2] for place in every}) == len(every), "no key is read twice"
    for number, slot_plan in enumerate(slot_plans):
        used = split.used[split.segment, number]
        shift = split.shift[split.segment[used], number]
        assert slots(split.item_start[:, used], split.item_end[:, used], shift) == wanted(slot_plan)
    assert not split.used[:, len(slot_plans) :].any()
    read = (split.item_end > split.item_start).any(axis=0)
    assert split.used[split.segment[read]].any(axis=1).all(), "nothing is read for no question"


@given(asked=questions(1), held=st.data())
def test_relocated_segments_read_the_same_tokens_of_streams_without_gaps(asked, held):
    dense, (slot_plan,), (segments,) = asked
    groups, chunk_size = held.draw(st.integers(1, 12)), held.draw(st.integers(1, 4))
    layout = Layout(3, (2,) * groups, 4)
    dense = selection.dense_chunks(layout.chunks(chunk_size), [1])
    segments = plan.plan_segments(layout, 2, chunk_size, dense)
    kept = np.flatnonzero(layout.dense_groups(chunk_size, dense))
    moved = plan.relocate(segments, layout, kept)
    streams = layout.visual_rows(kept), layout.global_rows(kept), np.arange(layout.sparse_length(2))
    for stream, rows in enumerate(streams):
        for number in range(len(segments.shift)):
            want = np.arange(segments.k_start[stream, number], segments.k_end[stream, number])
            got = rows[moved.k_start[stream, number] : moved.k_end[stream, number]]
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("questions", "count", "reads_tail"), [(1, 1, True), (20, 1, True), (20, 1, False), (2, 3, True)]
)
def test_shared_programs_give_what_one_pass_over_all_keys_gives(questions, count, reads_tail):
    """Programs of several items in a step, and of one in a question, run by the reference; 20 questions are two tiles."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    stream, other, tail = (attention.KVCache(normal(1, 2, n, 16), normal(1, 2, n, 16)) for n in (90, 70, 64))
    heads = 4
    segments = in_place.Segments(*np.asarray([[[3, 40], [0, 9]], [[33, 90], [0, 70]]], np.int32), np.zeros(2, np.int32))
    kernel = dataclasses.replace(
        attention.REFERENCE,
        row_tiles=(TileSizes(16, 16), TileSizes(32, 8)),
        segment_tiles=(),
        concurrent_items=12,
        persistent=True,
        equal_tiles=False,
    )
    streams, q = (stream, other, tail), normal(questions, count, heads, 16)
    step, question = in_place.segment_tables(
        kernel, [segments], levels=[(0, 1)], capacity=3, merged_capacity=3, kv_heads=2, questions=questions
    )
    k_start = np.arange(questions)[:, None] * 3 + np.zeros(count, int)
    k_end = k_start + 1 + np.arange(count)
    items = jax.tree.map(lambda a: a[0], step if count == 1 else question)
    planned = in_place.plan_items(kernel, items, k_start, k_end, repeats=2, reads_tail=jnp.asarray(reads_tail))
    assert (planned.schedule.first_item is not None) == (count == 1)
    out, lse = planned.attend(planned.rows(q), streams)
    every = np.zeros((1, questions * count), int)
    read = [(stream, every + 3, every + 33), (stream, every + 40, every + 90), (other, every + 9, every + 70)]
    parts = []
    for cache, start, end in [*read, (tail, k_start.reshape(1, -1), k_end.reshape(1, -1))]:
        alone = attention.plan_attention(attention.REFERENCE, start, end, heads=heads, streams=[cache])
        parts.append(attention.attend(q.reshape(-1, heads, 16), [cache], alone))
    parts = parts if reads_tail else parts[:-1]
    want, want_lse = tile_schedule.merge_partials([(o[None], one[None]) for o, one in parts], axis=0)
    np.testing.assert_allclose(out, want, atol=2e-6)
    np.testing.assert_allclose(lse, want_lse, atol=2e-6)


def test_too_many_segments_are_refused():
    segments = in_place.Segments(*np.asarray([[[0, 0, 9]], [[4, 4, 12]]], np.int32), np.asarray([0, 0, 1], np.int32))
    with pytest.raises(ValueError, match="3 segments"):
        in_place.split_segments(segments, items=8, capacity=2)


@pytest.mark.parametrize("name", ["tpu", "reference"])
@pytest.mark.parametrize("count", [1, 3])
def test_shapes_of_tables_do_not_depend_on_what_was_chosen(name, count):
    memory = toys.remembered(toys.model(), toys.video())
    kernel = attention.choose_kernel(name, dtype="float32", width=16).kernel

    def view(n: int) -> views.KVCacheView:
        dense = np.stack([selection.dense_chunks(4, [2 + (n + n * row) % 2]) for row in range(count)])
        return views.mixed_view(memory, 2, dense, kernel)

    assert len({str(jax.tree.map(np.shape, (view(n).step_table, view(n).question_table))) for n in (0, 1)}) == 1


QUESTIONS = np.asarray([[7, 3, 11, 30, 2], [9, 2, 40, 0, 0], [0, 0, 0, 0, 0]], np.int32)
COUNTS = np.asarray([5, 3, 0], np.int32)
"""Two questions, and none at all, which fills the batch up."""


def logits_of(toy, view: views.KVCacheView, kernel: attention.Kernel, which=slice(None)) -> np.ndarray:
    """Logits of the real tokens of the questions and of two new ones [tokens, vocabulary]."""
    ids, counts = QUESTIONS[which], COUNTS[which]
    found = decode.generate(
        toy.params,
        toy.config,
        view,
        ids,
        counts,
        Sampling(),
        jax.random.key(0),
        max_new=2,
        keep_logits=True,
        kernel=kernel,
    )
    real = [np.asarray(found.question_logits)[n, 5 - count :] for n, count in enumerate(counts)]
    return np.concatenate([*real, *np.asarray(found.logits)[counts > 0]])


def toy_and_memory(dtype: str = "float32"):
    language = dataclasses.replace(toys.CONFIG.language, layers=2)
    toy = toys.model(dataclasses.replace(toys.CONFIG, language=language))
    memory = toys.remembered(toy, toys.video())
    levels = jax.tree.map(lambda a: a.astype(dtype), {"dense": memory.dense, "sparse": memory.sparse})
    return toy, memory.replace(**levels)


def dense_of(chosen, count: int) -> np.ndarray:
    return np.stack([selection.dense_chunks(4, each) for each in chosen]) & (COUNTS[:count, None] > 0)


CHOSEN = {"one": [[2]], "many": [[2], [3], []], "dense": None}


@pytest.mark.parametrize(
    "chosen", [pytest.param(CHOSEN["one"], marks=pytest.mark.slow), CHOSEN["many"], CHOSEN["dense"]], ids=CHOSEN
)
def test_the_reference_reads_in_place_what_assembled_caches_hold(chosen):
    """Every question of a batch, against its own cache assembled slot by slot."""
    toy, memory = toy_and_memory()
    count = len(chosen or COUNTS)
    dense = np.ones((count, 5), bool) if chosen is None else dense_of(chosen, count)
    kernel = attention.REFERENCE
    view = views.dense_view(memory, kernel, count) if chosen is None else views.mixed_view(memory, 2, dense, kernel)
    got = logits_of(toy, view, kernel, slice(count))
    real = [n for n in range(count) if COUNTS[n]]
    alone = [
        logits_of(toy, assembled_view(memory, plan_mixed(memory.layout, 2, 2, dense[n])), kernel, slice(n, n + 1))
        for n in real
    ]
    want = np.concatenate([*(a[: COUNTS[n]] for n, a in zip(real, alone, strict=True)), *(a[-2:] for a in alone)])
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(("name", "dtype", "tolerance"), backends(2e-5, 6e-2))
@pytest.mark.parametrize("chosen", CHOSEN.values(), ids=CHOSEN)
@pytest.mark.kernels
def test_kernels_read_segments_as_the_reference_does(name, dtype, tolerance, chosen):
    toy, memory = toy_and_memory(dtype)
    kernel = attention.choose_kernel(name, dtype=dtype, width=toy.config.language.head_width).kernel
    assert kernel.name == name and kernel.interpret
    count = len(chosen or COUNTS)

    def found(kernel: attention.Kernel) -> np.ndarray:
        if chosen is None:
            view = views.dense_view(memory, kernel, count)
        else:
            view = views.mixed_view(memory, 2, dense_of(chosen, count), kernel)
        return logits_of(toy, view, kernel, slice(count))

    np.testing.assert_allclose(found(kernel), found(attention.REFERENCE), atol=tolerance)


def tiles_of_16_rows(name: str) -> attention.Kernel:
    kernel = attention.choose_kernel(name, dtype="float32", width=16).kernel
    return dataclasses.replace(kernel, row_tiles=kernel.row_tiles[:1])


@pytest.mark.parametrize("name", ["tpu", "ampere"])
def test_questions_share_the_rows_of_a_call_and_see_only_their_own_tail(name):
    """Two questions of three tokens, their tails one after another: keys of the memory are read once for both. The
    second does not use the last segment."""
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    stream, tail = (attention.KVCache(normal(1, 2, n, 16), normal(1, 2, n, 16)) for n in (80, 16))
    q, second = normal(2, 3, 4, 16), np.arange(6) >= 3
    used = np.stack([np.ones(6, bool), ~second])
    segments = in_place.Segments(*np.asarray([[[0, 48]], [[32, 80]]], np.int32), np.zeros((2, 6), np.int32), used)
    items = in_place.split_segments(segments, items=5, capacity=2, keys=16)
    k_start = np.where(second, 8, 0)
    k_end = k_start + np.asarray([1, 2, 3, 1, 2, 3], np.int32)
    planned = in_place.plan_items(tiles_of_16_rows(name), items, k_start.reshape(2, 3), k_end.reshape(2, 3), repeats=2)
    both, lse = planned.attend(planned.rows(q), (stream, tail))
    for part, last in (slice(0, 3), 80), (slice(3, 6), 48):
        ranges = np.asarray([[0] * 3, [48] * 3, k_start[part]]), np.asarray([[32] * 3, [last] * 3, k_end[part]])
        alone = attention.plan_attention(attention.REFERENCE, *ranges, heads=4, streams=(stream, stream, tail))
        want, want_lse = attention.attend(q.reshape(6, 4, 16)[part], (stream, stream, tail), alone)
        np.testing.assert_allclose(both[part], want, atol=1e-5)
        np.testing.assert_allclose(lse[part], want_lse, atol=1e-5)


@pytest.mark.parametrize("name", ["tpu", "ampere"])
def test_tiles_of_padding_alone_read_nothing(name):
    segments = in_place.Segments(*np.asarray([[[0]], [[64]]], np.int32), np.zeros(1, np.int32))
    items = in_place.split_segments(segments, items=2, capacity=1)
    k_end = np.arange(16) < 8  # eight queries see a key of the tail, eight are padding: with two heads each, a tile
    planned = in_place.plan_items(
        tiles_of_16_rows(name), items, np.zeros((1, 16), int), k_end.astype(int)[None], repeats=2
    )
    schedule = planned.schedule
    keys = np.asarray(schedule.item_end - schedule.item_start).sum(axis=0)
    assert keys[schedule.q_tile % 2 == 0].sum() == 65 and not keys[schedule.q_tile % 2 == 1].any()
