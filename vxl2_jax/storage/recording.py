"""Writing a memory file while the video is watched, and going on with one that was cut off.

Until it is complete the file is called `.NAME.part` and lies beside NAME; then it takes its name in one step. One
process writes it at a time. Copying from the device and writing happen in a thread, while the next stride is watched.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import shutil
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from pallas_kernels.attention import KVCache
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import Layout
from vxl2_jax.prefill import DenseCache
from vxl2_jax.storage import locking, memory_file, records
from vxl2_jax.storage.memory_file import Shape, StoredLevel, rows_of, spans


class Recording:
    """A memory file being written; close it, whatever happens.

    groups: how many groups a cut-off recording of the same identity already held.
    """

    def __init__(
        self,
        path: str | Path,
        identity: dict[str, Any],
        shape: Shape,
        *,
        stride: int = memory_file.GROUPS_A_RECORD,
        resume: bool = True,
    ) -> None:
        """Begin, or (with `resume`) go on with, the recording of `path`.

        stride: groups watched at a time, a multiple of GROUPS_A_RECORD. What was recorded is kept up to the beginning
        of a stride, and the last stride is always done again. Raises RequestError if the place cannot be written, or
        another process is writing there.
        """
        self.path, self.layout, self.shape = Path(path), memory_file.layout_of(identity), shape
        self.partial = partial_path(path)
        told = json.dumps(identity).encode()
        try:
            self._file: BinaryIO = os.fdopen(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            locking.lock(self._file, self.path)
            self._kept = self._whole_records(told, stride) if resume else []
            self._check_space(fresh=not self._kept)
            if self._kept:
                self._file.seek(self._kept[-1].end)
                self._file.truncate()
            else:
                records.start(self._file)
                self._kept = [records.append(self._file, "IDENTITY", [told])]
                self._file.flush()
        except OSError as error:
            self.discard()
            raise self._unwritable(error) from error
        except BaseException:
            self._file.close()
            raise
        self.groups = sum(last - first for first, last in spans(self.layout)[: len(self._kept) - 1])
        self._queue: queue.Queue = queue.Queue(maxsize=2)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="vxl2-recording", daemon=True)
        self._thread.start()

    def stored(self) -> StoredLevel:
        """What a cut-off recording held; to be read before anything is added."""
        return StoredLevel(self.partial, self.layout, self.shape, tuple(self._kept[1:]), records.mapped(self.partial))

    def put(self, streams: DenseCache, first: int, last: int) -> None:
        """Add the groups `first` … `last` − 1 of the streams, which may be given up as soon as this returns.

        `first` is where the recording ends. Raises RequestError if the file cannot be written.
        """
        for begin, end in spans(self.layout):
            if first <= begin < last:
                self._hand_over(partial(_rows, *taken(streams, self.layout, begin, end), self.layout, begin, end))

    def finish(self, sparse: KVCache, length: int, beside: dict[str, np.ndarray]) -> None:
        """Add the sparse level, of which `length` slots are filled, and what extending needs; name the file.

        Raises RequestError if the file cannot be written.
        """
        self._hand_over(lambda: ("SPARSE", [np.asarray(part)[:, :, :length] for part in sparse]))
        if beside:
            self._hand_over(lambda: ("OPEN", memory_file.packed(beside)))
        self._hand_over(lambda: ("END", []))
        self._stop()
        self._raise_failure()
        try:
            os.fsync(self._file.fileno())
            os.replace(self.partial, self.path)
        except OSError as error:
            self.discard()
            raise self._unwritable(error) from error
        self._file.close()

    def close(self) -> None:
        """Leave what is written for the next time."""
        self._stop()
        self._file.close()

    def discard(self) -> None:
        """Remove what is written."""
        with suppress(OSError):  # what cannot be written any more is not wanted any more
            self._file.close()
        self.partial.unlink(missing_ok=True)

    def _hand_over(self, make: Any) -> None:
        self._raise_failure()
        self._queue.put(make)

    def _work(self) -> None:
        while (make := self._queue.get()) is not None:
            if self._failure is None:
                try:
                    records.append(self._file, *make())
                    self._file.flush()
                except BaseException as error:  # told to whoever puts next
                    self._failure = error

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        self._stop()
        if isinstance(self._failure, OSError):
            self.discard()
            raise self._unwritable(self._failure) from self._failure
        raise self._failure

    def _check_space(self, fresh: bool) -> None:
        """Raise RequestError if the disk is too full for the dense level: before anything is watched for nothing."""
        needed = self.shape.bytes(self.layout.length) - sum(entry.length for entry in self._kept)
        free = shutil.disk_usage(self.partial.parent).free
        if needed > free:
            if fresh:
                self.discard()  # what an earlier process recorded stays
            told = f"it needs {needed / 1e9:.3g} GB more, and {free / 1e9:.3g} GB are free"
            raise self._unwritable(OSError(errno.ENOSPC, told))

    def _whole_records(self, told: bytes, stride: int) -> list[records.Entry]:
        """The records worth keeping: IDENTITY, if it is ours, and the intact GROUPS of whole strides but the last."""
        found = records.entries(self.partial)
        if not found or not found[0] or found[0][0].kind != "IDENTITY":
            return []
        data, kept = records.mapped(self.partial), []
        if records.payload(data, found[0][0]).tobytes() != told:
            return []
        for entry in found[0]:
            if entry.kind not in ("IDENTITY", "GROUPS") or not records.intact(data, entry):
                break
            kept.append(entry)
        a_stride = stride // memory_file.GROUPS_A_RECORD
        whole = min((len(kept) - 1) // a_stride, (self.layout.groups - 1) // stride)
        return kept[: 1 + whole * a_stride]

    def _unwritable(self, error: OSError) -> RequestError:
        mend = "free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
        return RequestError(f"{self.path}: cannot write the memory ({error.strerror or error}); {mend}")


def partial_path(path: str | Path) -> Path:
    """Where a memory file lies until it is complete."""
    return Path(path).with_name(f".{Path(path).name}.part")


def taken(streams: DenseCache, layout: Layout, first: int, last: int) -> tuple[DenseCache, tuple[int, int]]:
    """Rows of some groups of both streams, cut with static shapes, and how many rows before them were cut too."""
    cut, before = [], []
    for stream, width, (start, _) in zip(streams, _widths(layout), rows_of(layout, first, last), strict=True):
        room = stream.k.shape[2]
        size = min(width, room)
        at = min(start, room - size)
        cut.append(_cut(stream, np.int32(at), size=size))
        before.append(start - at)
    return DenseCache(*cut), (before[0], before[1])


def restored(streams: DenseCache, level: StoredLevel) -> DenseCache:
    """The streams (given up) with all that is stored written where it belongs, a record at a time."""
    widths = _widths(level.layout)
    for number, span in zip(range(len(level.entries)), spans(level.layout), strict=False):
        padded = [
            KVCache(*(np.pad(a, ((0, 0), (0, 0), (0, width - a.shape[2]), (0, 0))) for a in stream))
            for stream, width in zip(level.record(number), widths, strict=True)
        ]
        starts = [np.int32(start) for start, _ in rows_of(level.layout, *span)]
        streams = _write(streams, DenseCache(*padded), starts)
    return streams


def _widths(layout: Layout) -> tuple[int, int]:
    """Rows of the largest record in both streams: static shapes for all."""
    sizes = [[stop - start for start, stop in rows_of(layout, *span)] for span in spans(layout)]
    return max(visual for visual, _ in sizes), max(global_ for _, global_ in sizes)


def _rows(
    cut: DenseCache, before: tuple[int, int], layout: Layout, first: int, last: int
) -> tuple[str, list[np.ndarray]]:
    """A GROUPS record of what was taken, copied from the device."""
    parts = []
    for stream, skipped, (start, stop) in zip(cut, before, rows_of(layout, first, last), strict=True):
        parts += [np.asarray(a)[:, :, skipped : skipped + stop - start] for a in stream]
    return "GROUPS", parts


@partial(jax.jit, static_argnames="size")
def _cut(stream: KVCache, at: np.int32, *, size: int) -> KVCache:
    return KVCache(*(jax.lax.dynamic_slice_in_dim(a, at, size, axis=2) for a in stream))


@partial(jax.jit, donate_argnames="streams")
def _write(streams: DenseCache, rows: DenseCache, starts: list[np.int32]) -> DenseCache:
    def put(a, new, at):
        return jax.lax.dynamic_update_slice_in_dim(a, new.astype(a.dtype), at, axis=2)

    return DenseCache(
        *(
            KVCache(*(put(a, new, at) for a, new in zip(stream, part, strict=True)))
            for stream, part, at in zip(streams, rows, starts, strict=True)
        )
    )
