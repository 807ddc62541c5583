"""Writing a memory file while its video is watched, and resuming an interrupted one.

While incomplete, the file is called `.NAME.part`, next to NAME; it is renamed atomically when complete. Only one process
writes it at a time. A background thread copies arrays from the device and writes them, while the next stride is watched.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import jax
import msgspec
import numpy as np

from pallas_kernels.attention import KVCache
from pallas_kernels.kv_cache import Index
from vxl2_jax import files
from vxl2_jax.errors import BusyError, RequestError
from vxl2_jax.hosts import agreed, on_every_host, on_first
from vxl2_jax.layout import Layout
from vxl2_jax.prefill import DenseCache
from vxl2_jax.storage import locking, memory_file, records
from vxl2_jax.storage.host_level import HostLevel
from vxl2_jax.storage.memory_file import CacheShape, Facts, StoredLevel, record_groups, rows_of_groups
from vxl2_jax.storage.placed_level import PlacedLevel
from vxl2_jax.storage.records import RecordReader
from vxl2_jax.tensor_parallel import cache_sharding


class MemoryFileWriter:
    """Writes a memory file. Call `close` in every case, also after errors.

    groups: number of groups that an interrupted file of the same identity already holds.
    """

    def __init__(
        self,
        path: str | Path,
        identity: dict[str, Any],
        shape: CacheShape,
        *,
        stride: int = memory_file.GROUPS_PER_RECORD,
        resume: bool = True,
    ) -> None:
        """Start the memory file `path`, or (with `resume`) continue an interrupted one.

        Args:
          path: the final path.
          identity: see `VideoMemory.identity`.
          shape: shape of the caches.
          stride: groups watched at a time, a multiple of GROUPS_PER_RECORD. An interrupted file is kept up to a multiple
            of it, always without the video's last stride.
          resume: keep what an interrupted file of the same identity holds.

        Raises:
          RequestError: the file cannot be written, the disk is too full, or another process is writing it.
        """
        self.path, self.layout, self.shape = Path(path), memory_file.layout_from_identity(identity), shape
        self.partial = partial_path(path)
        identity_json = json.dumps(identity).encode()
        try:
            self._file: BinaryIO = locking.open_for_writing(self.partial)
        except OSError as error:
            raise self._write_error(error) from error
        try:
            locking.lock(self._file, self.path)
            if not locking.is_at(self._file, self.partial):
                raise BusyError(f"{self.path}: another process has just finished it; run the command again")
            self._kept = self._reusable_records(identity_json, stride) if resume else []
            self._check_disk_space()
            if self._kept:
                self._file.seek(self._kept[-1].end)
                self._file.truncate()
            else:
                records.start(self._file)
                self._kept = [records.append(self._file, "IDENTITY", [identity_json])]
                self._file.flush()
        except OSError as error:
            self.discard()
            raise self._write_error(error) from error
        except BaseException:
            self._file.close()
            raise
        self.groups = sum(last - first for first, last in record_groups(self.layout)[: len(self._kept) - 1])
        self._queue: queue.Queue = queue.Queue(maxsize=2)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._write_queued, name="vxl2-memory-writer", daemon=True)
        self._thread.start()

    def stored_level(self) -> StoredLevel:
        """The groups of an interrupted file. Read them before adding any."""
        return _unfinished_level(self.partial, self.layout, self.shape, len(self._kept) - 1)

    def append(self, level: DenseCache | HostLevel | PlacedLevel | StoredLevel, first: int, last: int) -> None:
        """Add the groups `first` … `last` − 1 of a level. Streams on the device may be donated as soon as this returns.

        `first` must be the number of groups added so far. Raises RequestError if the file cannot be written.
        """
        for index, (begin, end) in enumerate(record_groups(self.layout)):
            if not first <= begin < last:
                continue
            if isinstance(level, HostLevel):
                self._enqueue(partial(_host_record, level.read_groups, begin, end))
            elif isinstance(level, PlacedLevel):
                self._enqueue(partial(_host_record, level.cut(begin, end)))
            elif isinstance(level, StoredLevel):
                self._enqueue(partial(_host_record, level.read_record, index))
            else:
                rows, skipped = _slice_groups(level, self.layout, begin, end)
                self._enqueue(partial(_groups_record, on_every_host(rows), skipped, self.layout, begin, end))

    def finish(self, sparse: KVCache, length: int, resume_arrays: dict[str, np.ndarray], facts: Facts) -> None:
        """Add the first `length` slots of the sparse level, the arrays needed to extend it and facts, and rename the file.

        Raises RequestError if the file cannot be written.
        """
        on_first(lambda: self._finish(sparse, length, resume_arrays, facts))

    def _finish(self, sparse: KVCache, length: int, resume_arrays: dict[str, np.ndarray], facts: Facts) -> None:
        self._enqueue(lambda: ("SPARSE", [np.asarray(part)[:, :, :length] for part in jax.tree.leaves(sparse)]))
        if resume_arrays:
            self._enqueue(lambda: ("OPEN", memory_file.pack_arrays(resume_arrays)))
        self._enqueue(lambda: ("FACTS", [msgspec.json.encode(facts)]))
        self._enqueue(lambda: ("END", []))
        self._stop_thread()
        self._raise_failure()
        try:
            os.fsync(self._file.fileno())
            os.replace(self.partial, self.path)
        except OSError as error:
            self.discard()
            raise self._write_error(error) from error
        self._file.close()

    def close(self) -> None:
        """Close the file. An incomplete one stays on disk, to be resumed."""
        self._stop_thread()
        self._file.close()

    def discard(self) -> None:
        """Delete the incomplete file."""
        with suppress(OSError):  # closing flushes, which may fail again; the file is deleted anyway
            self._file.close()
        self.partial.unlink(missing_ok=True)

    def _enqueue(self, make_record: Callable[[], tuple[str, Sequence[np.ndarray | bytes]]]) -> None:
        self._raise_failure()
        self._queue.put(make_record)

    def _write_queued(self) -> None:
        while (make_record := self._queue.get()) is not None:
            if self._failure is None:
                try:
                    records.append(self._file, *make_record())
                    self._file.flush()
                except BaseException as error:  # raised by the next `_enqueue` or by `finish`
                    self._failure = error

    def _stop_thread(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        self._stop_thread()
        if isinstance(self._failure, OSError):
            self.discard()
            raise self._write_error(self._failure) from self._failure
        raise self._failure

    def _check_disk_space(self) -> None:
        """Raise RequestError, before the video is watched, if the dense level does not fit on the disk."""
        needed = self.shape.bytes(self.layout.length) - sum(record.length for record in self._kept)
        try:
            files.check_disk_space(self.partial.parent, needed)
        except OSError as error:
            if not self._kept:
                self.discard()  # nothing in it is worth keeping
            raise self._write_error(error) from error

    def _reusable_records(self, identity_json: bytes, stride: int) -> list[records.Record]:
        """IDENTITY, if it is the same, and the intact GROUPS records of complete strides, without the last stride."""
        kept: list[records.Record] = []
        with files.open_regular(self.partial, files.MEMORY) as file, suppress(ValueError):  # damaged from there on
            reader = RecordReader(file)
            for record in reader.records:
                payload = reader.payload(record)
                if record.kind != ("GROUPS" if kept else "IDENTITY"):
                    break
                if not kept and payload.tobytes() != identity_json:
                    break
                kept.append(record)
        lengths = memory_file.record_lengths(self.layout, self.shape)
        if [record.length for record in kept[1:]] != lengths[: len(kept) - 1]:
            return []
        if not kept:
            return []
        per_stride = stride // memory_file.GROUPS_PER_RECORD
        strides = min((len(kept) - 1) // per_stride, (self.layout.groups - 1) // stride)
        return kept[: 1 + strides * per_stride]

    def _write_error(self, error: OSError) -> RequestError:
        disk_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some space on that disk" if disk_full else "choose another path"
        return RequestError(f"{self.path}: cannot write the memory ({error.strerror or error}); {fix}")


class FollowingWriter:
    """Takes part where another host writes a memory file: it does what all hosts must do together, and writes nothing.

    groups: as of `MemoryFileWriter`, on the first host.
    """

    def __init__(self, path: str | Path, layout: Layout, shape: CacheShape, groups: int) -> None:
        """path: of the memory file, on a disk that all hosts share."""
        self.path, self.layout, self.shape, self.groups = Path(path), layout, shape, groups

    def stored_level(self) -> StoredLevel:
        """As `MemoryFileWriter.stored_level`. Raises RequestError if the file is not here."""
        partial, count = partial_path(self.path), -(-self.groups // memory_file.GROUPS_PER_RECORD)
        if not partial.exists():
            raise RequestError(
                f"{self.path}: the unfinished memory is not on this host; give a path on a disk that all share"
            )
        return _unfinished_level(partial, self.layout, self.shape, count)

    def append(self, level: DenseCache | HostLevel | PlacedLevel | StoredLevel, first: int, last: int) -> None:
        """As `MemoryFileWriter.append`."""
        for begin, end in record_groups(self.layout):
            if first <= begin < last and isinstance(level, PlacedLevel):
                level.cut(begin, end)
            elif first <= begin < last and isinstance(level, DenseCache):
                on_every_host(_slice_groups(level, self.layout, begin, end)[0])

    def finish(self, *_: Any) -> None:
        """Wait until the first host has."""
        on_first(lambda: None)

    def close(self) -> None:
        """Nothing."""

    def discard(self) -> None:
        """Nothing."""


def open_writer(
    path: str | Path, identity: dict[str, Any], shape: CacheShape, **options: Any
) -> MemoryFileWriter | FollowingWriter:
    """The writer of this host. options: those of `MemoryFileWriter`, whose errors it raises on the first host."""
    writer = on_first(lambda: MemoryFileWriter(path, identity, shape, **options))
    groups = agreed(writer.groups if writer else 0)
    return writer or FollowingWriter(path, memory_file.layout_from_identity(identity), shape, groups)


def _unfinished_level(path: Path, layout: Layout, shape: CacheShape, count: int) -> StoredLevel:
    """The level of the first `count` GROUPS records."""
    reader = RecordReader(files.open_regular(path, files.MEMORY))
    return StoredLevel(path, layout, shape, tuple(reader.records[1 : 1 + count]), reader)


def partial_path(path: str | Path) -> Path:
    """The path of a memory file while it is incomplete."""
    return Path(path).with_name(f".{Path(path).name}.part")


def restore_streams(streams: DenseCache, level: StoredLevel) -> DenseCache:
    """Write a stored level into the streams (donated), one record at a time, each device's heads straight to it."""
    sizes, sharding = _record_rows(level.layout), cache_sharding(streams)
    for index in range(len(level.group_records)):
        padded = [stream.padded(size) for stream, size in zip(level.read_record(index), sizes, strict=True)]
        ranges = rows_of_groups(level.layout, *record_groups(level.layout)[index])
        rows = jax.device_put(DenseCache(*padded), sharding)
        streams = _write_rows(streams, rows, [np.int32(start) for start, _ in ranges])
    return streams


def _record_rows(layout: Layout) -> tuple[int, int]:
    """Rows of the largest record in each stream, so that all records use one static shape."""
    ranges = [rows_of_groups(layout, *groups) for groups in record_groups(layout)]
    visual, global_ = (max(stop - start for start, stop in stream) for stream in zip(*ranges, strict=True))
    return visual, global_


def _slice_groups(streams: DenseCache, layout: Layout, first: int, last: int) -> tuple[DenseCache, tuple[int, int]]:
    """A slice of static size that holds the rows of some groups, and how many rows it holds before them per stream."""
    slices, skipped = [], []
    for stream, size, (start, _) in zip(
        streams, _record_rows(layout), rows_of_groups(layout, first, last), strict=True
    ):
        capacity = stream.k.shape[2]
        size = min(size, capacity)
        begin = min(start, capacity - size)
        slices.append(_slice_rows(stream, np.int32(begin), size=size))
        skipped.append(start - begin)
    return DenseCache(*slices), (skipped[0], skipped[1])


def _groups_record(
    rows: DenseCache, skipped: tuple[int, int], layout: Layout, first: int, last: int
) -> tuple[str, list[np.ndarray]]:
    """A GROUPS record of what `_slice_groups` returned, copied to the host."""
    parts = []
    for stream, skip, (start, stop) in zip(rows, skipped, rows_of_groups(layout, first, last), strict=True):
        parts += [np.asarray(a)[:, :, skip : skip + stop - start] for a in jax.tree.leaves(stream)]
    return "GROUPS", parts


def _host_record(read: Callable[..., DenseCache], *where: int) -> tuple[str, list[np.ndarray]]:
    """A GROUPS record of what a level in host memory or on disk has there."""
    return "GROUPS", [np.ascontiguousarray(part) for part in jax.tree.leaves(read(*where))]


@partial(jax.jit, static_argnames="size")
def _slice_rows(stream: KVCache, start: Index, *, size: int) -> KVCache:
    return stream.rows(start, size)


@partial(jax.jit, donate_argnames="streams")
def _write_rows(streams: DenseCache, rows: DenseCache, starts: list[Index]) -> DenseCache:
    each = zip(streams, rows, starts, strict=True)
    return DenseCache(*(stream.with_rows(new, start) for stream, new, start in each))
