"""The format of a memory file, and reading it.

    IDENTITY   JSON: version, model, video and its fingerprint, how it was watched, layout, shape of the caches
    GROUPS     keys and values of GROUPS_PER_RECORD groups of both streams; one record after another, in order
    SPARSE     the sparse level (absent while the file is incomplete)
    OPEN       arrays needed to extend the memory (`memory.ResumeState`); optional
    FACTS      JSON: what is known only once the video has been read: its hash, and what was damaged or missing in it
    END        empty: the file is complete

Arrays are [L, K, rows, D] in the memory's dtype, keys before values, without padding. In int8, the float32 scales
[L, K, rows, 1] of keys and then of values follow them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jaxtyping import Int, UInt8
from msgspec import Meta

from pallas_kernels import kv_cache
from pallas_kernels.attention import KVCache
from vxl2_jax import files
from vxl2_jax.config import Heads, Layers, RopeTheta, Size
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import Layout
from vxl2_jax.prefill import DenseCache
from vxl2_jax.storage import records
from vxl2_jax.storage.records import Record, RecordReader

VERSION = 5
GROUPS_PER_RECORD = 8
"""Small, so that a chunk can be read and verified without reading much else. Strides must be multiples of it."""
_Seconds = Annotated[float, Meta(ge=0, le=1e12)]
_Rows = Annotated[int, Meta(ge=0, le=2**20)]
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
        return cls(layers, kv_heads, head_width, jnp.dtype(stream.dtype).name)

    def bytes(self, rows: int) -> int:
        """Size of the keys and values of `rows` rows, with their scales."""
        return self.layers * self.kv_heads * rows * kv_cache.row_bytes(self.head_width, self.dtype)

    def view(self, data: UInt8[np.ndarray, " bytes"], rows: int) -> KVCache:
        """The bytes of `rows` rows as keys and values [L, K, rows, D]: a view, except for the scales of a cache in int8."""
        shape, dtype = (2, self.layers, self.kv_heads, rows), jnp.dtype(self.dtype)
        numbers = math.prod(shape) * self.head_width * dtype.itemsize
        k, v = data[:numbers].view(dtype).reshape(*shape, self.head_width)
        if dtype != jnp.int8:
            return KVCache(k, v)
        # The scales may begin at a byte that is no multiple of 4, which a view could not: they are copied.
        return KVCache(k, v, *np.frombuffer(data[numbers:].tobytes(), np.float32).reshape(*shape, 1))


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


def record_lengths(layout: Layout, shape: CacheShape) -> list[int]:
    """The bytes of each GROUPS record."""
    return [
        sum(shape.bytes(stop - start) for start, stop in rows_of_groups(layout, *groups))
        for groups in record_groups(layout)
    ]


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
    reader: RecordReader = field(repr=False)
    _verified: set[int] = field(default_factory=set, repr=False)

    def check_lengths(self) -> None:
        """Raise ValueError if the number or the lengths of the records are not those of the layout."""
        if [record.length for record in self.group_records] != record_lengths(self.layout, self.shape):
            raise ValueError("the dense level does not have the lengths that the layout needs")

    def read_record(self, index: int) -> DenseCache:
        """The rows of one GROUPS record in both streams: arrays [L, K, rows, D].

        Raises RequestError if the record is damaged, or the file was changed since it was opened.
        """
        try:
            data = self.reader.payload(self.group_records[index], verify=index not in self._verified)
        except ValueError as error:
            raise damaged_error(self.path) from error
        except OSError as error:
            files.MEMORY.fail(self.path, f"cannot be read ({error.strerror})", error)
        self._verified.add(index)
        ranges = rows_of_groups(self.layout, *record_groups(self.layout)[index])
        visual, global_ = (stop - start for start, stop in ranges)
        split = self.shape.bytes(visual)
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
                return jax.tree.map(lambda a: a[:, :, rows], stream)

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
    facts: Facts
    dense: StoredLevel
    sparse: KVCache
    resume_arrays: dict[str, np.ndarray]


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a video only once it has been read.

    video_hash: SHA-256 of the file; empty if there is none. distinct_frames: number of different frames that were watched; 0
    if unknown. notes: what was missing, damaged or unusual in the video, a line each.
    """

    video_hash: Annotated[str, Meta(max_length=64)] = ""
    distinct_frames: Annotated[int, Meta(ge=0, le=2**40)] = 0
    notes: Annotated[tuple[Annotated[str, Meta(max_length=1000)], ...], Meta(max_length=100)] = ()


class _LayoutFields(msgspec.Struct, frozen=True):
    prefix: Annotated[int, Meta(ge=0, le=2**20)]
    stamps: tuple[Annotated[int, Meta(ge=0, le=2**10)], ...]
    visual: Annotated[int, Meta(ge=1, le=2**12)]


class _RuleFields(msgspec.Struct, frozen=True):
    block_size: Annotated[int, Meta(ge=1, le=2**40)]
    prev_blocks: Annotated[int, Meta(ge=0, le=2**40)] | None


class _Identity(msgspec.Struct, frozen=True):
    """The types and bounds of the IDENTITY record; see `VideoMemory` for the fields."""

    shape: tuple[Layers, Heads, Size, Literal["float32", "bfloat16", "float16", "int8"]]
    rule: _RuleFields
    layout: _LayoutFields
    compression: Annotated[int, Meta(ge=1, le=2**12)]
    end_s: _Seconds
    last_s: _Seconds
    frames: Annotated[int, Meta(ge=1, le=2**40)]
    rope_theta: RopeTheta
    model: str
    video: str
    fingerprint: str
    reading: str
    generated: bool
    seconds: tuple[_Seconds, ...]

    def __post_init__(self) -> None:
        groups = len(self.layout.stamps)
        if not groups or groups != len(self.seconds):
            raise ValueError("layout and seconds have different numbers of groups")


class _ResumeHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of the OPEN record: dtype and shape of each array of `memory.ResumeState`."""

    tokens: tuple[Literal["float32", "bfloat16", "float16"], tuple[_Rows, _Rows, _Rows]]
    frames: tuple[Literal["uint8"], tuple[_Rows, _Rows, _Rows, Literal[3]]]


def read(path: str | Path, verify: bool | None = None) -> MemoryFileContents:
    """Open a complete memory file. It stays open while its dense level is used.

    Args:
      path: the file.
      verify: True verifies all records now, False those of the dense level when they are first read. None verifies
        all of them now if the file has at most MAX_VERIFIED_BYTES.

    Raises:
      RequestError: the file is missing, truncated, damaged, of another format or of another version, or its records do
        not have the lengths that its layout needs.
    """
    path = Path(path)
    file = files.open_regular(path, files.MEMORY)
    try:
        reader = RecordReader(file)
    except ValueError as error:
        files.MEMORY.fail(path, "not a memory file", error)
    except OSError as error:
        files.MEMORY.fail(path, f"cannot be read ({error.strerror})", error)
    found = reader.records
    if not found or found[-1].kind != "END" or reader.end != reader.size:
        raise RequestError(
            f"{path}: this memory is incomplete or damaged; watch the video again, or copy the file again"
        )
    by_kind = {record.kind: record for record in found}
    group_records = tuple(record for record in found if record.kind == "GROUPS")
    try:
        identity, checked = _checked_identity(path, reader.payload(by_kind["IDENTITY"]).tobytes())
        layout, shape = layout_from_identity(identity), CacheShape(*checked.shape)
        length = layout.sparse_length(checked.compression)
        if by_kind["SPARSE"].length != shape.bytes(length):
            raise ValueError("the sparse level does not have the length that the layout needs")
        level = StoredLevel(path, layout, shape, group_records, reader)
        level.check_lengths()
        if verify or (verify is None and reader.size <= MAX_VERIFIED_BYTES):
            level.verify()
        sparse = shape.view(reader.payload(by_kind["SPARSE"]), length)
        facts = msgspec.json.decode(reader.payload(by_kind["FACTS"]).tobytes(), type=Facts)
        resume_arrays = _unpack_arrays(reader.payload(by_kind["OPEN"])) if "OPEN" in by_kind else {}
        if resume_arrays and resume_arrays["tokens"].shape[1] != layout.visual:
            raise ValueError("the tokens to resume from are not those of the layout")
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise damaged_error(path) from error
    return MemoryFileContents(identity, facts, level, sparse, resume_arrays)


def read_identity(name: str, read: Callable[[int, int], bytes]) -> dict[str, Any]:
    """Only the identity of a memory file; nothing else of it is read.

    Args:
      name: of the file, for messages.
      read: (start, stop) → the bytes of the file in this range.

    Raises RequestError if it is not a memory file of this version, or its beginning is damaged.
    """
    try:
        kind, payload = records.first_record(read)
        if kind != "IDENTITY":
            raise ValueError(f"a record {kind}")
        return _checked_identity(name, payload)[0]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_error(Path(name)) from error


def _checked_identity(where: str | Path, payload: bytes) -> tuple[dict[str, Any], _Identity]:
    """(the identity as it is stored, the same with types and bounds checked). Raises RequestError for another version, and
    ValueError for content that is out of bounds."""
    identity = files.parse_json(payload.decode(), where, files.MEMORY)
    if (version := identity["version"]) != VERSION:
        raise RequestError(
            f"{where}: a memory of version {version!r:.20}, but this program reads version {VERSION}; "
            "watch the video again"
        )
    return identity, msgspec.convert(identity, _Identity)


def layout_from_identity(identity: dict[str, Any]) -> Layout:
    """The layout described by an identity."""
    layout = identity["layout"]
    return Layout(layout["prefix"], tuple(layout["stamps"]), layout["visual"])


def pack_arrays(arrays: dict[str, np.ndarray]) -> list[np.ndarray | bytes]:
    """Named arrays as the parts of one record: a line of JSON with dtypes and shapes, then the arrays."""
    header = {name: [str(jnp.dtype(a.dtype)), list(a.shape)] for name, a in arrays.items()}
    return [(json.dumps(header) + "\n").encode(), *(np.asarray(a) for a in arrays.values())]


def _unpack_arrays(data: UInt8[np.ndarray, " bytes"]) -> dict[str, np.ndarray]:
    """Raises ValueError for arrays of other names, types or lengths than those of a `memory.ResumeState`."""
    header, rest = data.tobytes().split(b"\n", 1)
    arrays, offset = {}, 0
    for name, (dtype, shape) in msgspec.structs.asdict(msgspec.json.decode(header, type=_ResumeHeader)).items():
        size = math.prod(shape) * jnp.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(rest[offset : offset + size], jnp.dtype(dtype)).reshape(shape)
        offset += size
    if offset != len(rest):
        raise ValueError("the arrays do not fill their record")
    return arrays


def damaged_error(path: Path) -> RequestError:
    """The error to raise for a damaged memory file."""
    return RequestError(f"{path}: this memory is damaged; watch the video again, or copy the file again")
