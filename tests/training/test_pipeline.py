"""Batches: every sample once per epoch, one shape each, the same order wherever the run was interrupted."""

import json
import shutil
from itertools import islice

import numpy as np
import pytest
from msgspec.structs import replace

from vxl2_jax.errors import RequestError, VideoError
from vxl2_jax.training import conversations, pipeline, settings

BATCH = 2


@pytest.fixture
def run(config):
    return settings.read(config())


@pytest.fixture
def dataset(tiny, run):
    return pipeline.scan_dataset(tiny, conversations.read(run.data.files)[0], run)


def taken(iterator, count):
    return list(islice(iterator, count))


def names(tiny, loaded):
    """What identifies each sample of a batch: its tokens, and its number of real rows."""
    return [
        (tuple(ids[ids > 0].tolist()), int((k_end > 0).any(axis=0).sum()))
        for ids, k_end in zip(loaded.batch.ids, loaded.batch.k_end, strict=True)
        if k_end.any()
    ]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.batch, other.batch, strict=True)) and one[1:] == other[1:]


def test_every_sample_comes_once_per_epoch_and_epochs_differ(tiny, run, dataset):
    epoch = pipeline.batches_per_epoch(dataset, run)
    assert epoch == 4  # seven samples
    loaded = taken(pipeline.batches(tiny, dataset, run), 3 * epoch)
    epochs = [[name for part in loaded[i * epoch : (i + 1) * epoch] for name in names(tiny, part)] for i in range(3)]
    for samples in epochs:
        assert len(samples) == 7 and sorted(samples) == sorted(epochs[0])
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    assert sum(part.tokens for part in loaded[:epoch]) == sum(count for _, count in epochs[0])


def test_a_batch_has_one_of_few_shapes_and_targets_only_for_answers(tiny, run, dataset):
    loaded = taken(pipeline.batches(tiny, dataset, run), 8)
    assert {part.batch.frames.shape[:2] for part in loaded} <= {(BATCH, 8), (BATCH, 12), (BATCH, 20)}
    yes, no, stop = (tiny.tokenizer.encode(word)[0] for word in ("yes", "no", "<|im_end|>"))
    for part in loaded:
        for targets in part.batch.targets:
            predicted = targets[targets >= 0].tolist()
            assert predicted in ([], [yes, stop], [no, stop])


def test_an_iterator_resumes_from_its_state(tiny, run, dataset):
    whole = taken(pipeline.batches(tiny, dataset, run), 9)
    first = pipeline.batches(tiny, dataset, run)
    taken(first, 5)
    state = json.loads(json.dumps(first.get_state()))
    again = pipeline.batches(tiny, dataset, run)
    again.set_state(state)
    assert all(same(a, b) for a, b in zip(whole[5:], taken(again, 4), strict=True))


def test_processes_split_every_batch(tiny, run, dataset):
    whole = taken(pipeline.batches(tiny, dataset, run), 4)
    shares = [taken(pipeline.batches(tiny, dataset, run, process, 2), 4) for process in range(2)]
    for number, part in enumerate(whole):
        both = [share[number] for share in shares]
        assert all(one.batch.frames.shape[0] == 1 for one in both)
        assert same(
            part,
            pipeline.LoadedBatch(
                type(part.batch)(*map(np.concatenate, zip(*(one.batch for one in both), strict=True))),
                sum(one.tokens for one in both),
                sum(one.skipped for one in both),
            ),
        )
    with pytest.raises(RequestError, match="batch must be a multiple of 3"):
        pipeline.batches(tiny, dataset, run, 0, 3)


def test_another_seed_gives_another_order(tiny, run, dataset):
    other = replace(run, seed=1)
    one, another = (taken(pipeline.batches(tiny, dataset, each), 8) for each in (run, other))
    assert not all(same(a, b) for a, b in zip(one, another, strict=True))


def with_broken(folder, data, run):
    """A copy of the data where one of the five videos, of two samples, is not a video."""
    shutil.copytree(data, folder)
    (folder / "1.mp4").write_bytes(b"no video")
    return replace(run, data=replace(run.data, files=(str(folder / "train.jsonl"),)))


def test_samples_of_a_video_that_cannot_be_read_are_skipped(tiny, run, data, tmp_path):
    broken = with_broken(tmp_path / "broken", data, run)
    rows = conversations.read(broken.data.files)[0]
    dataset = pipeline.scan_dataset(tiny, rows, broken)
    assert len(dataset.conversations) == 5 and len(dataset.skipped) == 2 and "1.mp4: not a video" in dataset.skipped[0]
    strict = replace(broken, data=replace(broken.data, strict=True))
    with pytest.raises(VideoError, match="1.mp4"):
        pipeline.scan_dataset(tiny, rows, strict)
    with pytest.raises(VideoError, match="1.mp4"):
        pipeline.scan_dataset(tiny, [row for row in rows if row.name == "1.mp4"], broken)


def test_a_video_that_disappears_has_zero_weight(tiny, run, data, tmp_path):
    folder = tmp_path / "lost"
    shutil.copytree(data, folder)
    moved = replace(run, data=replace(run.data, files=(str(folder / "train.jsonl"),)))
    dataset = pipeline.scan_dataset(tiny, conversations.read(moved.data.files)[0], moved)
    (folder / "4.mp4").unlink()  # of one sample
    loaded = taken(pipeline.batches(tiny, dataset, moved), 4)
    assert sum(part.skipped for part in loaded) == 1
    assert sum((part.batch.targets >= 0).any(axis=1).sum() for part in loaded) == 6
    strict = replace(moved, data=replace(moved.data, strict=True))
    with pytest.raises(VideoError, match="4.mp4: no such file"):
        taken(pipeline.batches(tiny, dataset, strict), 4)


def test_the_digest_changes_with_the_data(tiny, run, dataset):
    rows = conversations.read(run.data.files)[0]
    assert pipeline.scan_dataset(tiny, rows, run).digest == dataset.digest
    other = conversations.Conversation(rows[0].name, rows[0].video, (("is there a dog?", "no"),))
    changed = [other, *rows[1:]]
    assert pipeline.scan_dataset(tiny, changed, run).digest != dataset.digest


def test_the_frame_cache_is_bounded(tmp_path):
    cache, reads = pipeline.FrameCache(150.0), []

    def get(name):
        return cache.get(tmp_path / name, lambda: (reads.append(name), (np.zeros(100, np.uint8), (0.0,)))[1])

    for _ in range(2):
        get("a"), get("b")
    assert reads == ["a", "b", "b"]
