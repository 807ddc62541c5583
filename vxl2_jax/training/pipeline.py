"""From conversations to batches, with grain: the order is the same wherever a run was interrupted.

All videos are scanned first, which decodes almost nothing. Then each epoch is shuffled, sorted by size, cut into
batches, and the batches are shuffled: every sample comes once per epoch, in a batch of samples of similar length, padded
to one shape. The last batch of an epoch is filled up with samples of zero weight.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import grain
import numpy as np
from jaxtyping import Int, UInt8

from vxl2_jax.config import ModelConfig
from vxl2_jax.encode import layout_of
from vxl2_jax.errors import RequestError, VideoError
from vxl2_jax.layout import PrefillRule
from vxl2_jax.runtime import Runtime
from vxl2_jax.text import prompt
from vxl2_jax.training import collate, sequences
from vxl2_jax.training.conversations import Conversation
from vxl2_jax.training.loop import LoadedBatch
from vxl2_jax.training.settings import TrainingSettings, VideoSettings
from vxl2_jax.video.reader import VideoSource, default_threads, open_video

_PREFETCH_BYTES = 4e9
"""Memory for prefetched samples, approximately; one sample is always prefetched."""
_FRAMES_PER_READ = 64


@dataclass(frozen=True)
class Dataset:
    """The samples of a run.

    Attributes:
      conversations: one per sample.
      sizes: groups and global rows that each sample is padded to.
      skipped: why, for each conversation that was skipped: its video cannot be read, or it is too long.
      digest: hash of the conversations and of the times of the videos' frames.
    """

    conversations: tuple[Conversation, ...]
    sizes: Int[np.ndarray, "N 2"]
    skipped: tuple[str, ...]
    digest: str


def scan_dataset(
    model: Runtime,
    conversations: Sequence[Conversation],
    settings: TrainingSettings,
    progress: Callable[[int, int], Any] | None = None,
) -> Dataset:
    """Open all videos, and skip the samples of those that cannot be read, and conversations longer than the window.

    Args:
      model: only its tokenizer and config are used.
      progress: called with (videos done, total).

    Raises:
      VideoError: a video cannot be read and the settings are strict, or no video can be read.
    """
    paths = sorted({conversation.video for conversation in conversations})
    starts: dict[Path, tuple[float, ...]] = {}
    unreadable: dict[Path, VideoError] = {}
    with ThreadPoolExecutor(_threads()) as pool:
        opened = pool.map(lambda path: _starts_or_error(model.config, path, settings.video), paths)
        for done, (path, result) in enumerate(zip(paths, opened, strict=True), 1):
            if isinstance(result, VideoError):
                unreadable[path] = result
            else:
                starts[path] = result
            if progress:
                progress(done, len(paths))
    used, errors, lengths = [], [], []
    for each in conversations:
        length = len(_token_ids(model, each)[0])
        if each.video in unreadable:
            errors.append(unreadable[each.video])
        elif length > prompt.MAX_QUESTION_TOKENS:
            limit = f"the window of {prompt.MAX_QUESTION_TOKENS:,}"
            errors.append(
                VideoError(f"{each.name}: its conversation has {length:,} tokens, more than {limit}: shorten it")
            )
        else:
            used.append(each)
            lengths.append(length)
    if errors and (settings.data.strict or not used):
        raise errors[0]
    global_lengths = {path: len(layout_of(model, starts[path])[1]) for path in {each.video for each in used}}
    groups = np.array([len(starts[each.video]) for each in used])
    rows = np.array([global_lengths[each.video] + length for each, length in zip(used, lengths, strict=True)])
    digest = hashlib.sha256()
    for each in used:
        digest.update(json.dumps([each.name, each.turns, starts[each.video]]).encode())
    return Dataset(tuple(used), sequences.sizes(groups, rows), tuple(map(str, errors)), digest.hexdigest()[:16])


def batches_per_epoch(dataset: Dataset, settings: TrainingSettings) -> int:
    """Steps per epoch."""
    return -(-len(dataset.conversations) // settings.batch)


def batches(
    model: Runtime, dataset: Dataset, settings: TrainingSettings, process: int = 0, processes: int = 1
) -> grain.DatasetIterator:
    """An endless iterator over this process's part of each batch (`LoadedBatch` of `collate.Batch`), with get_state and
    set_state.

    Args:
      model: only its tokenizer and config are used.

    Raises:
      RequestError: the batch size is not a multiple of `processes`.
    """
    if settings.batch % processes:
        raise RequestError(f"batch must be a multiple of {processes}, the number of processes, not {settings.batch}")
    seed, local_batch = settings.seed % 2**32, settings.batch // processes
    loader = _Loader(replace(model, params=None), dataset, settings)
    shuffled = grain.MapDataset.range(len(dataset.conversations)).shuffle(seed=seed)
    slots = _SampleSlots(_BatchPlans(shuffled, dataset.sizes, settings.batch).shuffle(seed=seed), settings.batch)
    samples = slots[process::processes].repeat().map(loader)
    largest = dataset.sizes[:, 0].max() * model.config.frames_per_group * 3 * model.config.vision.image_size**2
    prefetch = int(np.clip(_PREFETCH_BYTES // largest, 1, 2 * local_batch))
    options = grain.ReadOptions(num_threads=min(_threads(), prefetch), prefetch_buffer_size=prefetch)
    return iter(samples.to_iter_dataset(options).batch(local_batch, drop_remainder=True, batch_fn=_collate))


class _BatchPlan(NamedTuple):
    """Sample numbers of a batch (−1: a sample of zero weight), and the size that they are padded to."""

    samples: np.ndarray
    groups: int
    rows: int


class _SampleSlot(NamedTuple):
    """One sample of a planned batch."""

    sample: int
    groups: int
    rows: int


class _BatchPlans(grain.MapDataset):
    """The batches of an epoch: the shuffled samples of `parent`, sorted by size and cut."""

    def __init__(self, parent: grain.MapDataset, sizes: np.ndarray, batch: int) -> None:
        super().__init__(parent)
        self._sizes, self._batch = sizes, batch
        self._epochs: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return -(-len(self._parent) // self._batch)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        epoch, number = divmod(index, len(self))
        samples = self._batches(epoch)[number]
        return _BatchPlan(samples, *(int(size) for size in self._sizes[samples[samples >= 0]].max(axis=0)))

    def _batches(self, epoch: int) -> np.ndarray:
        """int [batches, batch]: sample numbers."""
        cut = self._epochs.get(epoch)
        if cut is None:
            count = len(self._parent)
            samples = np.array([self._parent[epoch * count + index] for index in range(count)])
            samples = samples[np.argsort(self._sizes[samples, 0], kind="stable")]
            cut = np.pad(samples, (0, -count % self._batch), constant_values=-1).reshape(-1, self._batch)
            # Prefetching starts the next epoch while the last samples of this one are still read: keep both.
            self._epochs = {known: self._epochs[known] for known in self._epochs if known == epoch - 1} | {epoch: cut}
        return cut


class _SampleSlots(grain.MapDataset):
    """The samples of all planned batches, in order."""

    def __init__(self, parent: grain.MapDataset, batch: int) -> None:
        super().__init__(parent)
        self._batch = batch

    def __len__(self) -> int:
        return len(self._parent) * self._batch

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        number, offset = divmod(index, self._batch)
        plan = cast(_BatchPlan, self._parent[number])
        return _SampleSlot(int(plan.samples[offset]), plan.groups, plan.rows)


class _Loader:
    """Reads single samples; called from several threads."""

    def __init__(self, model: Runtime, dataset: Dataset, settings: TrainingSettings) -> None:
        self._model, self._dataset, self._settings = model, dataset, settings
        self._cache = FrameCache(settings.data.cache_gb * 1e9)

    def __call__(self, slot: _SampleSlot) -> LoadedBatch:
        skipped = 0
        try:
            if slot.sample >= 0:
                return self._load(self._dataset.conversations[slot.sample], slot)
        except VideoError:
            if self._settings.data.strict:
                raise
            skipped = 1
        return LoadedBatch(collate.padding_sample(self._model.config, groups=slot.groups, rows=slot.rows), 0, skipped)

    def _load(self, conversation: Conversation, slot: _SampleSlot) -> LoadedBatch:
        model, video = self._model, self._settings.video
        frames, starts = self._cache.get(conversation.video, lambda: _frames(model.config, conversation.video, video))
        layout, global_ids = layout_of(model, starts)
        ids, targets = _token_ids(model, conversation)
        rule, size = PrefillRule(video.block_size, video.prev_blocks), {"groups": slot.groups, "rows": slot.rows}
        try:
            batch = collate.build_sample(model.config, frames, layout, rule, global_ids, ids, targets, **size)
        except RequestError as error:
            raise VideoError(
                f"{conversation.video}: has become longer since the run started; restore the old file"
            ) from error
        return LoadedBatch(batch, layout.length + len(ids), 0)


class FrameCache:
    """Decoded frames, up to `limit` bytes in all; videos that do not fit are read every time.

    Nothing is evicted: with a new shuffle every epoch that would not raise the hit rate.
    """

    def __init__(self, limit: float) -> None:
        self._limit, self._bytes, self._lock = limit, 0, threading.Lock()
        self._entries: dict[Path, tuple[np.ndarray, tuple[float, ...]]] = {}

    def get(
        self, path: Path, read: Callable[[], tuple[np.ndarray, tuple[float, ...]]]
    ) -> tuple[np.ndarray, tuple[float, ...]]:
        """The result of `read` for a video: frames, and the second at which each group starts."""
        with self._lock:
            if path in self._entries:
                return self._entries[path]
        entry = read()
        with self._lock:
            if path not in self._entries and self._bytes + entry[0].nbytes <= self._limit:
                self._entries[path] = entry
                self._bytes += entry[0].nbytes
        return entry


def _collate(samples: Sequence[LoadedBatch]) -> LoadedBatch:
    batches, tokens, skipped = zip(*samples, strict=True)
    return LoadedBatch(collate.collate(batches), sum(tokens), sum(skipped))


def _token_ids(model: Runtime, conversation: Conversation) -> tuple[np.ndarray, np.ndarray]:
    return sequences.tokens(model.tokenizer, model.config.stop_tokens, conversation.turns)


def _open(config: ModelConfig, path: Path, video: VideoSettings) -> tuple[VideoSource, tuple[float, ...]]:
    """The video, and the second at which each group starts."""
    # One thread for each video: several videos are read at the same time.
    options = {"fps": video.fps, "max_frames": video.max_frames, "max_fps": video.max_fps, "read_threads": 1}
    source = open_video(path, size=config.vision.image_size, **options)
    return source, tuple(float(second) for second in source.seconds[:: config.frames_per_group])


def _starts_or_error(config: ModelConfig, path: Path, video: VideoSettings) -> tuple[float, ...] | VideoError:
    try:
        return _open(config, path, video)[1]
    except VideoError as error:
        return error


def _frames(
    config: ModelConfig, path: Path, video: VideoSettings
) -> tuple[UInt8[np.ndarray, "F px px 3"], tuple[float, ...]]:
    """All sampled frames, and the second at which each group starts."""
    source, starts = _open(config, path, video)
    return np.concatenate(list(source.batches(_FRAMES_PER_READ))), starts


def _threads() -> int:
    return default_threads()
