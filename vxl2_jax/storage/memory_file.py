"""What the records of a memory file are, and how they are read.

    IDENTITY   JSON: version, model, video and its hash, how it was watched, layout, shapes
    GROUPS     keys and values of GROUPS groups of both streams, then the next ones, in order
    SPARSE     the sparse level (left out of a file that is not complete)
    OPEN       what extending the memory needs beside: see `memory.Open`; may be missing
    END        nothing: the file is complete

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

from pallas_kernels.attention import KVCache
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import Layout
from vxl2_jax.prefill import DenseCache
from vxl2_jax.storage import records
from vxl2_jax.storage.records import Entry

VERSION = 3
GROUPS_A_RECORD = 8
"""So that a chunk is read, and checked, without reading much more. Strides are multiples of it."""
VERIFIED_WHOLE = 2 * 2**30
"""Files up to this many bytes are checked whole when they are opened: about a second."""


class Shape(NamedTuple):
    """What an array of a memory has beside its rows."""

    layers: int
    kv_heads: int
    width: int
    dtype: str

    @classmethod
    def of(cls, stream: KVCache) -> Shape:
        layers, kv_heads, _, width = stream.k.shape
        return cls(layers, kv_heads, width, jnp.dtype(stream.k.dtype).name)

    def bytes(self, rows: int) -> int:
        """Of keys and values of so many rows."""
        return 2 * self.layers * self.kv_heads * rows * self.width * jnp.dtype(self.dtype).itemsize

    def view(self, data: np.ndarray, rows: int) -> KVCache:
        """Keys and values in uint8 [bytes(rows)]."""
        whole = data.view(jnp.dtype(self.dtype)).reshape(2, self.layers, self.kv_heads, rows, self.width)
        return KVCache(whole[0], whole[1])


class Rows(NamedTuple):
    """Half-open ranges of rows of both streams that a run of groups owns."""

    visual: tuple[int, int]
    global_: tuple[int, int]


def rows_of(layout: Layout, first: int, last: int) -> Rows:
    """The rows of the groups `first` … `last` − 1; the prefix belongs to group 0."""
    return Rows((first * layout.visual, last * layout.visual), layout.global_range(first, last))


def spans(layout: Layout) -> list[tuple[int, int]]:
    """Groups of every GROUPS record, as half-open ranges."""
    return [(g, min(g + GROUPS_A_RECORD, layout.groups)) for g in range(0, layout.groups, GROUPS_A_RECORD)]


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class StoredLevel:
    """A dense level on disk: a pytree without leaves, of which groups are read when they are asked for.

    A record is checked when it is first touched.
    """

    path: Path
    layout: Layout
    shape: Shape
    entries: tuple[Entry, ...]
    data: np.ndarray = field(repr=False)
    _intact: set[int] = field(default_factory=set, repr=False)

    def record(self, number: int) -> DenseCache:
        """The streams' rows of one record, mapped: arrays [L, K, rows, D].

        Raises RequestError for a damaged record.
        """
        entry = self.entries[number]
        if number not in self._intact:
            if not records.intact(self.data, entry):
                raise damaged(self.path)
            self._intact.add(number)
        rows = rows_of(self.layout, *spans(self.layout)[number])
        visual, global_ = (stop - start for start, stop in rows)
        if entry.length != self.shape.bytes(visual) + self.shape.bytes(global_):
            raise damaged(self.path)
        data = records.payload(self.data, entry)
        split = self.shape.bytes(visual)
        return DenseCache(self.shape.view(data[:split], visual), self.shape.view(data[split:], global_))

    def gather(self, groups: np.ndarray) -> DenseCache:
        """Rows of the prefix and of some groups (ascending): NumPy arrays [L, K, n·V, D], [L, K, prefix + stamps, D]."""
        layout, parts = self.layout, []
        for number in sorted({0, *(np.asarray(groups, int) // GROUPS_A_RECORD).tolist()}):
            first, last = spans(layout)[number]
            wanted = [g for g in groups if first <= g < last]
            rows, origin = self.record(number), rows_of(layout, first, last)
            global_ = layout.global_rows(wanted)[layout.prefix if number else 0 :]

            def pick(stream, index):
                return KVCache(*(a[:, :, index] for a in stream))

            parts.append(
                DenseCache(
                    pick(rows.visual, layout.visual_rows(wanted) - origin.visual[0]),
                    pick(rows.global_, global_ - origin.global_[0]),
                )
            )
        return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=2), *parts)

    def verify(self) -> None:
        """Check every record now. Raises RequestError for a damaged one."""
        for number in range(len(self.entries)):
            self.record(number)


class Opened(NamedTuple):
    """A complete memory file: its identity, the levels, and the arrays of OPEN by name ({} where there is none)."""

    identity: dict[str, Any]
    dense: StoredLevel
    sparse: KVCache
    open: dict[str, np.ndarray]


def read(path: str | Path, verify: bool | None = None) -> Opened:
    """Open a complete memory file.

    verify: check every record now (True), or the dense level's when they are touched (False); None: now, for
    files of up to VERIFIED_WHOLE bytes. Raises RequestError for a file that is missing, of another kind or
    version, cut short or damaged.
    """
    path = Path(path)
    try:
        found = records.entries(path)
        if found is None:
            raise foreign(path)
        entries, end = found
        size = path.stat().st_size
        if not entries or entries[-1].kind != "END" or end != size:
            raise RequestError(f"{path}: this memory is cut short or damaged; watch the video again, or copy the file")
        data = records.mapped(path)
    except FileNotFoundError as error:
        raise RequestError(f"{path}: no such memory file; `vxl2 watch VIDEO --out {path}` makes one") from error
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); give the path of a memory file") from error
    by_kind = {entry.kind: entry for entry in entries}
    dense = tuple(entry for entry in entries if entry.kind == "GROUPS")
    for kind in ("IDENTITY", "SPARSE", "OPEN"):
        if kind not in by_kind and kind != "OPEN" or kind in by_kind and not records.intact(data, by_kind[kind]):
            raise damaged(path)
    try:
        identity = json.loads(records.payload(data, by_kind["IDENTITY"]).tobytes())
        if identity["version"] != VERSION:
            told = f"a memory of version {identity['version']}, and this program reads {VERSION}"
            raise RequestError(f"{path}: {told}; watch the video again")
        layout, shape = layout_of(identity), Shape(*identity["shape"])
        if len(dense) != len(spans(layout)):
            raise damaged(path)
        level = StoredLevel(path, layout, shape, dense, data)
        if verify or (verify is None and size <= VERIFIED_WHOLE):
            level.verify()
        raw = records.payload(data, by_kind["SPARSE"])
        sparse = shape.view(raw, len(raw) // shape.bytes(1))
        opened = _unpacked(records.payload(data, by_kind["OPEN"])) if "OPEN" in by_kind else {}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path) from error
    return Opened(identity, level, sparse, opened)


def layout_of(identity: dict[str, Any]) -> Layout:
    """The layout as the identity has it."""
    said = identity["layout"]
    return Layout(said["prefix"], tuple(said["stamps"]), said["visual"])


def packed(arrays: dict[str, np.ndarray]) -> list[np.ndarray | bytes]:
    """Named arrays as the parts of a record: a line of JSON, then each array."""
    told = {name: [str(jnp.dtype(a.dtype)), list(a.shape)] for name, a in arrays.items()}
    return [(json.dumps(told) + "\n").encode(), *(np.asarray(a) for a in arrays.values())]


def _unpacked(data: np.ndarray) -> dict[str, np.ndarray]:
    line, rest = data.tobytes().split(b"\n", 1)
    arrays, at = {}, 0
    for name, (dtype, shape) in json.loads(line).items():
        size = int(np.prod(shape)) * jnp.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(rest[at : at + size], jnp.dtype(dtype)).reshape(shape)
        at += size
    return arrays


def foreign(path: Path) -> RequestError:
    return RequestError(f"{path}: not a video memory of this version; `vxl2 watch VIDEO --out FILE` makes one")


def damaged(path: Path) -> RequestError:
    return RequestError(f"{path}: this memory is damaged; watch the video again, or copy the file again")
