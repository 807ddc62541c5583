"""Asking a memory on disk: the same answers, from the chunks it reads."""

import numpy as np
import pytest

from pallas_kernels import attention
from vxl2_jax.cache import views
from vxl2_jax.memory import VideoMemory
from vxl2_jax.relevance import selection
from vxl2_jax.storage import memory_file

from .conftest import noise

QUESTIONS = ["what?", "is there 7?", "time 12?"]


@pytest.fixture(scope="module")
def memory(model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_file, "GROUPS_PER_RECORD", 4)
        watched = model.watch(noise(130))
        path = tmp_path_factory.mktemp("memory") / "m"
        watched.save(path)
        yield watched, VideoMemory.load(path, verify=False)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"top_k": 0}, marks=pytest.mark.slow),
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"top_k": None}, marks=pytest.mark.slow),
        {"relevance": "recent"},
        {"relevance": "mass"},
        pytest.param({"relevance": "mass", "chunk_size": 3}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "question", [pytest.param(QUESTIONS[0], marks=pytest.mark.slow), QUESTIONS], ids=["one question", "several"]
)
def test_a_memory_on_disk_answers_like_one_on_the_device(model, memory, options, question):
    watched, stored = memory
    options = {"chunk_size": 2, "top_k": 2, "max_new_tokens": 6, **options}
    assert model.ask(stored, question, **options) == model.ask(watched, question, **options)


def test_only_the_chunks_loaded_dense_are_read(model, memory):
    _, stored = memory
    stored.dense._verified.clear()
    model.ask(stored, "what?", relevance=lambda ids, m: np.arange(m.layout.chunks(2)) == 8, chunk_size=2, top_k=1)
    # Groups 0 and 1 (with the prefix), 16 and 17, and the last chunk's one, 32: records of four groups.
    assert stored.dense._verified == {0, 4, 8}


@pytest.mark.parametrize("chosen", [([3],), ([3], [3, 9]), ([], [5], [16])], ids=["one", "two", "three"])
def test_kernels_read_the_same_keys_of_what_was_fetched(memory, chosen):
    kernel = attention.choose_kernel("tpu", dtype="float32", width=8).kernel
    dense = np.stack([selection.dense_chunks(17, np.asarray(one, int)) for one in chosen])
    whole, part = (views.mixed_view(one, 2, dense, kernel) for one in memory)
    assert part.streams[0].k.shape[2] < whole.streams[0].k.shape[2]
    for base in (whole, part):
        assert base.step_table.item_start.shape == whole.step_table.item_start.shape
    for item in range(whole.step_table.segment.shape[1]):
        for stream in range(3):
            named = [
                slice(b.step_table.item_start[0, stream, item], b.step_table.item_end[0, stream, item])
                for b in (whole, part)
            ]
            keys = [np.asarray(b.streams[stream].k)[:, :, at] for b, at in zip((whole, part), named, strict=True)]
            np.testing.assert_array_equal(*keys)
    np.testing.assert_array_equal(whole.step_table.shift, part.step_table.shift)
