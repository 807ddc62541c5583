"""The format of a memory file, and reading it.

    IDENTITY   JSON: version, model, video and its hash, how it was watched, layout, shape of the caches
    GROUPS     keys and values of GROUPS_PER_RECORD groups of both streams; one record after another, in order
    SPARSE     the sparse level (absent while the file is incomplete)
    OPEN       arrays needed to extend the memory (`memory.ResumeState`); optional
    END        empty: the file is complete

Arrays are [L, K, rows, D] in the memory's dtype, keys before values, without padding.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from pallas_kernels.attention import KVCache
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import Layout
from vxl2_jax.prefill import DenseCache
from vxl2_jax.storage import records
from vxl2_jax.storage.records import Record

VERSION = 3
GROUPS_PER_RECORD = 8
"""Small, so that a chunk can be read and verified without reading much more. Strides are multiples of it."""
MAX_VERIFIED_BYTES = 2 * 2**30
"""Files up to this size are verified completely when they are opened, which takes about a second."""


class CacheShape(NamedTuple):
    """Shape and dtype of a memory's caches [L, K, rows, D], without the number of rows."""

    layers: int
    kv_heads: int
    head_width: int
    dtype: str

    @classmethod
    def of(cls, stream: KVCache) -> CacheShape:
        layers, kv_heads, _, head_width = stream.k.shape
        return cls(layers, kv_heads, head_width, jnp.dtype(stream.k.dtype).name)

    def bytes(self, rows: int) -> int:
        """Size of the keys and values of `rows` rows."""
        return 2 * self.layers * self.kv_heads * rows * self.head_width * jnp.dtype(self.dtype).itemsize

    def view(self, data: UInt8[np.ndarray, " bytes"], rows: int) -> KVCache:
        """The bytes of `rows` rows as keys and values."""
        array = data.view(jnp.dtype(self.dtype)).reshape(2, self.layers, self.kv_heads, rows, self.head_width)
        return KVCache(array[0], array[1])


class StreamRows(NamedTuple):
    """The half-open range of rows that consecutive groups occupy in each stream."""

    visual: tuple[int, int]
    global_: tuple[int, int]


def rows_of_groups(layout: Layout, first: int, last: int) -> StreamRows:
    """The rows of the groups `first` … `last` − 1; the prefix belongs to group 0."""
    return StreamRows((first * layout.visual, last * layout.visual), layout.global_range(first, last))


def record_groups(layout: Layout) -> list[tuple[int, int]]:
    """The half-open range of groups in each GROUPS record."""
    return [(g, min(g + GROUPS_PER_RECORD, layout.groups)) for g in range(0, layout.groups, GROUPS_PER_RECORD)]


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class StoredLevel:
    """A dense level on disk: a pytree without leaves. Groups are read on demand.

    A record is verified the first time it is read.
    """

    path: Path
    layout: Layout
    shape: CacheShape
    group_records: tuple[Record, ...]
    data: UInt8[np.ndarray, " size"] = field(repr=False)
    _verified: set[int] = field(default_factory=set, repr=False)

    def read_record(self, index: int) -> DenseCache:
        """The rows of one GROUPS record in both streams, memory-mapped: arrays [L, K, rows, D].

        Raises RequestError if the record is damaged.
        """
        record = self.group_records[index]
        if index not in self._verified:
            if not records.is_intact(self.data, record):
                raise damaged_error(self.path)
            self._verified.add(index)
        ranges = rows_of_groups(self.layout, *record_groups(self.layout)[index])
        visual, global_ = (stop - start for start, stop in ranges)
        split = self.shape.bytes(visual)
        if record.length != split + self.shape.bytes(global_):
            raise damaged_error(self.path)
        data = records.payload(self.data, record)
        return DenseCache(self.shape.view(data[:split], visual), self.shape.view(data[split:], global_))

    def gather(self, groups: Int[np.ndarray, " n"]) -> DenseCache:
        """The rows of the prefix and of some groups (ascending).

        Returns NumPy arrays: visual [L, K, n·V, D], global [L, K, prefix + timestamp tokens, D].
        Raises RequestError if a record is damaged.
        """
        layout, parts = self.layout, []
        for index in sorted({0, *(groups // GROUPS_PER_RECORD).tolist()}):
            first, last = record_groups(layout)[index]
            selected = [int(g) for g in groups if first <= g < last]
            cache, origin = self.read_record(index), rows_of_groups(layout, first, last)
            global_rows = layout.global_rows(selected)[layout.prefix if index else 0 :]

            def select(stream: KVCache, rows: np.ndarray) -> KVCache:
                return KVCache(*(a[:, :, rows] for a in stream))

            parts.append(
                DenseCache(
                    select(cache.visual, layout.visual_rows(selected) - origin.visual[0]),
                    select(cache.global_, global_rows - origin.global_[0]),
                )
            )
        return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=2), *parts)

    def verify(self) -> None:
        """Verify every record. Raises RequestError if one is damaged."""
        for index in range(len(self.group_records)):
            self.read_record(index)


class MemoryFileContents(NamedTuple):
    """A complete memory file. `resume_arrays`: the arrays of the OPEN record by name, {} without one."""

    identity: dict[str, Any]
    dense: StoredLevel
    sparse: KVCache
    resume_arrays: dict[str, np.ndarray]


def read(path: str | Path, verify: bool | None = None) -> MemoryFileContents:
    """Open a complete memory file.

    Args:
      path: the file.
      verify: True verifies all records now, False those of the dense level when they are first read. None verifies
        all of them now if the file has at most MAX_VERIFIED_BYTES.

    Raises:
      RequestError: the file is missing, truncated, damaged, of another format or of another version.
    """
    path = Path(path)
    try:
        scanned = records.scan(path)
        if scanned is None:
            raise RequestError(f"{path}: not a memory file; create one with `vxl2 watch VIDEO --out FILE`")
        found, end = scanned
        size = path.stat().st_size
        if not found or found[-1].kind != "END" or end != size:
            raise RequestError(
                f"{path}: this memory is incomplete or damaged; watch the video again, or copy the file again"
            )
        data = records.memory_map(path)
    except FileNotFoundError as error:
        raise RequestError(f"{path}: no such file; create it with `vxl2 watch VIDEO --out {path}`") from error
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); give the path of a memory file") from error
    by_kind = {record.kind: record for record in found}
    group_records = tuple(record for record in found if record.kind == "GROUPS")
    small = [by_kind[kind] for kind in ("IDENTITY", "SPARSE", "OPEN") if kind in by_kind]
    if not {"IDENTITY", "SPARSE"} <= by_kind.keys() or not all(records.is_intact(data, record) for record in small):
        raise damaged_error(path)
    try:
        identity = json.loads(records.payload(data, by_kind["IDENTITY"]).tobytes())
        if identity["version"] != VERSION:
            raise RequestError(
                f"{path}: a memory of version {identity['version']}, but this program reads version {VERSION}; "
                "watch the video again"
            )
        layout, shape = layout_from_identity(identity), CacheShape(*identity["shape"])
        if len(group_records) != len(record_groups(layout)):
            raise damaged_error(path)
        level = StoredLevel(path, layout, shape, group_records, data)
        if verify or (verify is None and size <= MAX_VERIFIED_BYTES):
            level.verify()
        sparse_bytes = records.payload(data, by_kind["SPARSE"])
        sparse = shape.view(sparse_bytes, len(sparse_bytes) // shape.bytes(1))
        resume_arrays = _unpack_arrays(records.payload(data, by_kind["OPEN"])) if "OPEN" in by_kind else {}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_error(path) from error
    return MemoryFileContents(identity, level, sparse, resume_arrays)


def layout_from_identity(identity: dict[str, Any]) -> Layout:
    """The layout described by an identity."""
    layout = identity["layout"]
    return Layout(layout["prefix"], tuple(layout["stamps"]), layout["visual"])


def pack_arrays(arrays: dict[str, np.ndarray]) -> list[np.ndarray | bytes]:
    """Named arrays as the parts of one record: a line of JSON with dtypes and shapes, then the arrays."""
    header = {name: [str(jnp.dtype(a.dtype)), list(a.shape)] for name, a in arrays.items()}
    return [(json.dumps(header) + "\n").encode(), *(np.asarray(a) for a in arrays.values())]


def _unpack_arrays(data: UInt8[np.ndarray, " bytes"]) -> dict[str, np.ndarray]:
    header, rest = data.tobytes().split(b"\n", 1)
    arrays, offset = {}, 0
    for name, (dtype, shape) in json.loads(header).items():
        size = int(np.prod(shape)) * jnp.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(rest[offset : offset + size], jnp.dtype(dtype)).reshape(shape)
        offset += size
    return arrays


def damaged_error(path: Path) -> RequestError:
    """The error to raise for a damaged memory file."""
    return RequestError(f"{path}: this memory is damaged; watch the video again, or copy the file again")
