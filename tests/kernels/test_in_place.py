"""Reading a cache as runs, in place, against the assembled cache."""

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
from vxl2_jax import bases, decode, mixed, select
from vxl2_jax.layout import Layout


@st.composite
def plans(draw):
    """A mixed cache of a random video: (dense chunks, plan)."""
    groups = draw(st.integers(1, 40))
    stamps = tuple(draw(st.lists(st.integers(1, 6), min_size=groups, max_size=groups)))
    layout = Layout(draw(st.integers(1, 9)), stamps, draw(st.sampled_from([4, 10, 12])))
    chunk_size, compression = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    chunks = layout.chunks(chunk_size)
    dense = select.dense_chunks(chunks, np.asarray(draw(st.lists(st.integers(1, chunks), max_size=6)), int))
    return dense, mixed.plan_mixed(layout, compression, chunk_size, dense)


@given(plan=plans(), items=st.integers(0, 60))
def test_runs_and_items_hold_every_slot_once_with_its_shift(plan, items):
    dense, plan = plan
    runs = in_place.gathered(plan.store, plan.index, plan.shift)
    room = 3 * int(dense.sum()) + 1
    assert len(runs.start) <= room, "the bound on runs that bases.py relies on"
    cut = in_place.cut(runs, streams=3, items=room + items, room=room, multiple=4)
    found = sorted(
        (stream, index, int(cut.shift[cut.run[item]]))
        for item in range(room + items) for stream in range(3)
        for index in range(cut.first[stream, item], cut.stop[stream, item])
    )
    assert found == sorted(zip(plan.store.tolist(), plan.index.tolist(), plan.shift.tolist(), strict=True))


def test_too_many_runs_are_refused():
    runs = in_place.Runs(*np.asarray([[0, 1, 0], [0, 0, 9], [4, 4, 12], [0, 0, 1]], np.int32))
    with pytest.raises(ValueError, match="3 runs do not fit in a room of 2"):
        in_place.cut(runs, streams=2, items=8, room=2)


def test_shapes_of_items_do_not_depend_on_what_was_chosen():
    memory = toys.remembered(toys.model(), toys.video())
    kernel = attention.choose("tpu", dtype="float32", width=16).kernel
    items = (bases.mixed_base(memory, 2, select.dense_chunks(4, np.asarray([n])), kernel).items for n in (2, 3))
    assert len({str(jax.tree.map(np.shape, each)) for each in items}) == 1


@pytest.mark.parametrize(("name", "dtype", "tolerance"), backends(2e-5, 6e-2))
@pytest.mark.parametrize("chosen", [[2], [], None], ids=["mixed", "edges", "dense"])
def test_a_question_over_runs_in_place_equals_one_over_the_assembled_cache(name, dtype, tolerance, chosen):
    toy, clip = toys.model(), toys.video()
    question = np.asarray([7, 3, 11, 30, 2], np.int32)
    memory = toys.remembered(toy, clip)
    memory = memory.replace(**jax.tree.map(lambda a: a.astype(dtype), {"dense": memory.dense, "sparse": memory.sparse}))
    kernel = attention.choose(name, dtype=dtype, width=toy.config.language.head_width).kernel
    assert kernel.name == name and kernel.interpret

    def logits(kernel: attention.Kernel) -> np.ndarray:
        base = (
            bases.dense_base(memory, kernel) if chosen is None
            else bases.mixed_base(memory, 2, select.dense_chunks(4, np.asarray(chosen, int)), kernel)
        )
        return np.asarray(decode.generate(
            toy.params, toy.config, base, question, np.int32(5), decode.Sampling(), jax.random.key(0), max_new=2,
            keep_logits=True, kernel=kernel,
        ).question_logits)

    np.testing.assert_allclose(logits(kernel), logits(attention.REFERENCE), atol=tolerance)


@pytest.mark.parametrize("name", ["tpu", "ampere"])
def test_many_questions_stand_in_the_rows_and_see_only_their_own_tail(name):
    """Two questions of three tokens, tails side by side: keys of the memory are read once for both."""
    rng = np.random.default_rng(1)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    stream, tail = (attention.Stream(normal(1, 2, n, 16), normal(1, 2, n, 16)) for n in (80, 16))
    q = normal(6, 4, 16)
    runs = in_place.Runs(*np.asarray([[0, 0], [0, 48], [32, 80], [0, 0]], np.int32))
    items = in_place.cut(runs, streams=1, items=5, room=2, multiple=16)
    starts = np.asarray([0, 0, 0, 8, 8, 8], np.int32)
    stops = starts + np.asarray([1, 2, 3, 1, 2, 3], np.int32)
    kernel = attention.choose(name, dtype="float32", width=16).kernel
    reads = in_place.prepare(kernel, items, starts, stops, repeats=2)
    both, lse = in_place.attend(jnp.stack([q, q]), q, (stream,), tail, reads)
    for part in (slice(0, 3), slice(3, 6)):
        ranges = np.asarray([[0] * 3, [48] * 3, starts[part]]), np.asarray([[32] * 3, [80] * 3, stops[part]])
        alone = attention.prepare(attention.REFERENCE, *ranges, heads=4, streams=(stream, stream, tail))
        want, want_lse = attention.attend(q[part], (stream, stream, tail), alone)
        np.testing.assert_allclose(both[part], want, atol=1e-5)
        np.testing.assert_allclose(lse[part], want_lse, atol=1e-5)
