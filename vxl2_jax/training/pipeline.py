"""From conversations to batches, by grain: the same ones in the same order, wherever the run was cut off.

All videos are looked at first, which reads their packets but decodes almost nothing. Then every epoch is shuffled, put
in order of size, cut into batches, and the batches are shuffled: every example comes once an epoch, beside others of
like length, and a batch has one shape. The last batch of an epoch is filled up with examples that weigh nothing.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np

from vxl2_jax import hardware
from vxl2_jax.api import Model
from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import RequestError, VideoError
from vxl2_jax.ingest import layout_of
from vxl2_jax.layout import PrefillRule
from vxl2_jax.training import collate, sequences
from vxl2_jax.training.collate import Batch
from vxl2_jax.training.conversations import Conversation
from vxl2_jax.training.settings import TrainingSettings, Video
from vxl2_jax.video.reader import VideoSource, open_video

_AHEAD_BYTES = 4e9
"""Examples that wait for their step take about so much memory at most (but one of them always may)."""
_AT_ONCE = 64  # frames decoded at a time


@dataclass(frozen=True)
class Corpus:
    """The examples that can be learnt from.

    rows: one conversation each; sizes int [N, 2]: groups and global rows that each is padded to; unread: for each row
    left out because its video cannot be read, why; digest: of everything in the rows and of the videos' lengths.
    """

    rows: tuple[Conversation, ...]
    sizes: np.ndarray
    unread: tuple[str, ...]
    digest: str


class Loaded(NamedTuple):
    """Examples ready for a step; tokens: real ones, of videos and conversations; unread: examples that weigh nothing
    because their video could not be read after all."""

    batch: Batch
    tokens: int
    unread: int


def scan_dataset(
    model: Model,
    rows: Sequence[Conversation],
    settings: TrainingSettings,
    progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Look at all videos and sort out those that cannot be read. `model` lends its tokenizer and geometry.

    progress: called with (videos done, videos in all). Raises VideoError for the first video that cannot be read if the
    settings are strict; RequestError if none can.
    """
    paths = sorted({row.video for row in rows})
    found: dict[Path, tuple[float, ...] | VideoError] = {}
    with ThreadPoolExecutor(_threads()) as pool:

        def look(path):
            return _starts_or_error(model.config, path, settings.video)

        for done, (path, starts) in enumerate(zip(paths, pool.map(look, paths), strict=True), 1):
            found[path] = starts
            if progress:
                progress(done, len(paths))
    broken = [found[row.video] for row in rows if isinstance(found[row.video], VideoError)]
    if broken and (settings.data.strict or len(broken) == len(rows)):
        raise broken[0]
    used = tuple(row for row in rows if not isinstance(found[row.video], VideoError))
    lengths = {path: len(layout_of(model, found[path])[1]) for path in {row.video for row in used}}
    asked = [len(sequences.tokens(model.tokenizer, model.config.stop_tokens, row.turns)[0]) for row in used]
    groups = np.array([len(found[row.video]) for row in used])
    count = np.array([lengths[row.video] + length for row, length in zip(used, asked, strict=True)])
    digest = hashlib.sha256()
    for row in used:
        digest.update(json.dumps([row.name, row.turns, found[row.video]]).encode())
    return Corpus(used, sequences.sizes(groups, count), tuple(map(str, broken)), digest.hexdigest()[:16])


def batches_per_epoch(corpus: Corpus, settings: TrainingSettings) -> int:
    """Steps in which every example is seen once."""
    return -(-len(corpus.rows) // settings.batch)


def batches(
    model: Model, corpus: Corpus, settings: TrainingSettings, process: int = 0, processes: int = 1
) -> grain.DatasetIterator[Loaded]:
    """An endless iterator over this process's share of each batch, with get_state and set_state.

    `model` lends its tokenizer and geometry. Raises RequestError where a batch cannot be shared out.
    """
    if settings.batch % processes:
        raise RequestError(f"batch must be a multiple of {processes}, the number of processes, not {settings.batch}")
    seed, share = settings.seed % 2**32, settings.batch // processes
    loader = _Loader(replace(model, params=None), corpus, settings)
    shuffled = grain.MapDataset.range(len(corpus.rows)).shuffle(seed=seed)
    places = _Places(_Groups(shuffled, corpus.sizes, settings.batch).shuffle(seed=seed), settings.batch)
    shared = places[process::processes].repeat().map(loader)
    largest = corpus.sizes[:, 0].max() * model.config.frames_per_group * 3 * model.config.vision.image_size**2
    ahead = int(np.clip(_AHEAD_BYTES // largest, 1, 2 * share))
    reading = grain.ReadOptions(num_threads=min(_threads(), ahead), prefetch_buffer_size=ahead)
    return iter(shared.to_iter_dataset(reading).batch(share, drop_remainder=True, batch_fn=_stacked))


class _Group(NamedTuple):
    """A batch to be: row numbers (−1: nothing), and the size that they are padded to."""

    rows: np.ndarray
    groups: int
    length: int


class _Place(NamedTuple):
    """One example of a batch to be."""

    row: int
    groups: int
    length: int


class _Groups(grain.MapDataset):
    """The batches of an epoch: the rows that `parent` has shuffled, in order of size, cut. One shape each."""

    def __init__(self, parent: grain.MapDataset[int], sizes: np.ndarray, batch: int):
        super().__init__(parent)
        self._sizes, self._batch = sizes, batch
        self._epochs: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return -(-len(self._parent) // self._batch)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        epoch, number = divmod(index, len(self))
        rows = self._cut(epoch)[number]
        return _Group(rows, *(int(size) for size in self._sizes[rows[rows >= 0]].max(axis=0)))

    def _cut(self, epoch: int) -> np.ndarray:
        """int [batches, batch]: row numbers."""
        cut = self._epochs.get(epoch)
        if cut is None:
            count = len(self._parent)
            rows = np.array([self._parent[epoch * count + place] for place in range(count)])
            rows = rows[np.argsort(self._sizes[rows, 0], kind="stable")]
            cut = np.pad(rows, (0, -count % self._batch), constant_values=-1).reshape(-1, self._batch)
            # Reading runs ahead into the next epoch while the last examples of this one are still to come.
            self._epochs = {known: self._epochs[known] for known in self._epochs if known == epoch - 1} | {epoch: cut}
        return cut


class _Places(grain.MapDataset):
    """Batches to be, flattened."""

    def __init__(self, parent: grain.MapDataset[_Group], batch: int):
        super().__init__(parent)
        self._batch = batch

    def __len__(self) -> int:
        return len(self._parent) * self._batch

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        number, place = divmod(index, self._batch)
        group = self._parent[number]
        return _Place(int(group.rows[place]), group.groups, group.length)


class _Loader:
    """Reads and arranges single examples; called from several threads."""

    def __init__(self, model: Model, corpus: Corpus, settings: TrainingSettings):
        self._model, self._corpus, self._settings = model, corpus, settings
        self._cache = FrameCache(settings.data.cache_gb * 1e9)

    def __call__(self, place: _Place) -> Loaded:
        if place.row < 0:
            return Loaded(_nothing(self._model.config, place), 0, 0)
        try:
            return self._load(self._corpus.rows[place.row], place)
        except VideoError:
            if self._settings.data.strict:
                raise
            return Loaded(_nothing(self._model.config, place), 0, 1)

    def _load(self, row: Conversation, place: _Place) -> Loaded:
        model, settings = self._model, self._settings
        frames, starts = self._cache.get(row.video, lambda: _frames(model.config, row.video, settings.video))
        layout, global_ids = layout_of(model, starts)
        asked, targets = sequences.tokens(model.tokenizer, model.config.stop_tokens, row.turns)
        try:
            batch = collate.example(
                model.config,
                frames,
                layout,
                PrefillRule(settings.block_size, settings.prev_blocks),
                global_ids,
                asked,
                targets,
                groups=place.groups,
                rows=place.length,
            )
        except RequestError as error:
            raise VideoError(f"{row.video}: has become longer since the run began; put the old one back") from error
        return Loaded(batch, layout.length + len(asked), 0)


class FrameCache:
    """Frames of videos, kept while they are fewer than `limit` bytes in all; what does not fit is read every time.

    Nothing is thrown out for something newer: in an order that is shuffled every epoch that would help nobody.
    """

    def __init__(self, limit: float):
        self._limit, self._bytes, self._lock = limit, 0, threading.Lock()
        self._known: dict[Path, tuple[np.ndarray, tuple[float, ...]]] = {}

    def get(
        self, path: Path, read: Callable[[], tuple[np.ndarray, tuple[float, ...]]]
    ) -> tuple[np.ndarray, tuple[float, ...]]:
        """What `read` gives for a video: frames and the seconds of its groups."""
        with self._lock:
            if path in self._known:
                return self._known[path]
        found = read()
        with self._lock:
            if path not in self._known and self._bytes + found[0].nbytes <= self._limit:
                self._known[path] = found
                self._bytes += found[0].nbytes
        return found


def _stacked(parts: Sequence[Loaded]) -> Loaded:
    return Loaded(
        collate.collate([part.batch for part in parts]),
        sum(part.tokens for part in parts),
        sum(part.unread for part in parts),
    )


def _nothing(config: ModelConfig, place: _Place) -> Batch:
    """An example without frames, tokens and targets."""
    side, total = config.vision.image_size, place.groups * config.visual_tokens + place.length
    ids, ranges = np.zeros(place.length, np.int32), np.zeros((2, total), np.int32)
    frames = np.zeros((place.groups * config.frames_per_group, side, side, 3), np.uint8)
    return Batch(frames, ids, ids - 1, np.zeros(total, np.int32), ranges, ranges)


def _open(config: ModelConfig, path: Path, video: Video) -> tuple[VideoSource, tuple[float, ...]]:
    """The video, and the second at which each of its groups starts."""
    source = open_video(
        path, size=config.vision.image_size, fps=video.fps, max_frames=video.max_frames, max_fps=video.max_fps
    )
    return source, tuple(float(second) for second in source.seconds[:: config.frames_per_group])


def _starts_or_error(config: ModelConfig, path: Path, video: Video) -> tuple[float, ...] | VideoError:
    try:
        return _open(config, path, video)[1]
    except VideoError as error:
        return error


def _frames(config: ModelConfig, path: Path, video: Video) -> tuple[np.ndarray, tuple[float, ...]]:
    """uint8 [F, S, S, 3] and the seconds of its groups."""
    source, starts = _open(config, path, video)
    return np.concatenate(list(source.batches(_AT_ONCE))), starts


def _threads() -> int:
    return min(16, hardware.cpu_cores())
