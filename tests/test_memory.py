"""The two levels of a memory."""

import jax
import numpy as np
import pytest
import toys

from experiments.parity.assembled import assemble, plan_mixed
from vxl2_jax.errors import RequestError
from vxl2_jax.relevance import selection

COMPRESSIONS = (1, 2, 3, 4)  # of 4 visual tokens; 3 drops a tail


def pooled(rows: np.ndarray, compression: int) -> np.ndarray:
    """Mean over windows of consecutive rows [V, K, D]; a tail that fills no window is dropped."""
    kept = len(rows) // compression
    return rows[: kept * compression].reshape(kept, compression, *rows.shape[1:]).mean(axis=1)


def stated_mixed(clip: toys.Video, k: np.ndarray, v: np.ndarray, compression: int, dense_group, config):
    """The mixed cache from unrotated keys and values [L, K, D] in natural order: chunk by chunk."""
    layout, keys, values = clip.layout, [k[: clip.layout.prefix]], [v[: clip.layout.prefix]]
    place = layout.prefix
    for group, stamp in enumerate(layout.timestamp_lengths):
        middle, end = place + stamp, place + stamp + layout.visual
        for rows, out in ((k, keys), (v, values)):
            out.append(rows[place:middle])
            out.append(rows[middle:end] if dense_group[group] else pooled(rows[middle:end], compression))
        place = end
    keys, values = np.concatenate(keys), np.concatenate(values)
    return toys.turned(keys, np.arange(len(keys)), config), values


def cache_rows(stream, layer: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.swapaxes(np.asarray(part[layer]), 0, 1)[:length] for part in stream[:2])


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_sparse_level_pools_keys_before_rotation(toy, compression):
    clip = toys.video()
    _, caches = toys.whole_pass(toy, toys.embedded(toy, clip), toys.mask_of(clip, toys.RULE))
    memory = toys.remembered(toy, clip, compression=compression)
    for layer, (k, v) in enumerate(caches):
        want = stated_mixed(clip, np.asarray(k), np.asarray(v), compression, [False] * 7, toy.config)
        assert len(want[0]) == memory.sparse_length
        for got, rows in zip(cache_rows(memory.sparse, layer, memory.sparse_length), want, strict=True):
            np.testing.assert_allclose(got, rows, atol=5e-5)


@pytest.mark.parametrize(
    "compression, chunk_size, chosen", [(2, 2, [3]), (3, 3, []), (2, 1, [2, 5]), (4, 2, None), (2, 9, [])]
)
def test_mixed_cache_is_dense_and_pooled_chunks_at_recounted_positions(toy, compression, chunk_size, chosen):
    clip = toys.video(1)
    _, caches = toys.whole_pass(toy, toys.embedded(toy, clip), toys.mask_of(clip, toys.RULE))
    memory = toys.remembered(toy, clip, compression=compression)
    dense = selection.dense_chunks(
        clip.layout.chunks(chunk_size), chosen if chosen is None else np.asarray(chosen, int)
    )
    dense_group = [dense[group // chunk_size + 1] for group in range(clip.layout.groups)]
    plan = plan_mixed(clip.layout, compression, chunk_size, dense)
    stream = assemble(memory, plan)
    for layer, (k, v) in enumerate(caches):
        want = stated_mixed(clip, np.asarray(k), np.asarray(v), compression, dense_group, toy.config)
        assert len(plan.store) == len(want[0])
        for got, rows in zip(cache_rows(stream, layer, len(plan.store)), want, strict=True):
            np.testing.assert_allclose(got, rows, atol=5e-5)


def test_with_compression_gives_the_memory_that_watching_with_it_gives(toy):
    clip = toys.video(2)
    memory = toys.remembered(toy, clip, compression=2)
    changed, watched = memory.with_compression(4), toys.remembered(toy, clip, compression=4)
    assert memory.compression == 2 and changed.compression == 4
    jax.tree.map(np.testing.assert_array_equal, changed.sparse, watched.sparse)
    jax.tree.map(np.testing.assert_array_equal, changed.dense, memory.dense)


@pytest.mark.parametrize("compression", [0, -1, 5])
def test_a_compression_that_fits_no_group_is_refused(toy, compression):
    with pytest.raises(RequestError, match="compression must be from 1 to 4"):
        toys.remembered(toy, toys.video()).with_compression(compression)


def test_chunk_spans_tile_the_video(toy):
    memory = toys.remembered(toy, toys.video())
    spans = [memory.chunk_span(chunk, 3) for chunk in (1, 2, 3)]
    assert spans == [(0.0, 12.0), (12.0, 24.0), (24.0, 28.0)]
