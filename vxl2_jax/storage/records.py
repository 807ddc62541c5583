"""A file of checksummed records, one behind another.

Records are only ever appended, so that a writer killed at any moment leaves whole records and at most one torn
one behind, which the next writer cuts off. Every number in a head is little-endian; payloads start at multiples of
64 bytes, so that arrays in them can be mapped.

    file    = MAGIC (64 bytes), record…
    record  = head (64 bytes), payload, zeros up to a multiple of 64
    head    = kind (8 letters), payload's bytes (u64), its CRC-32 (u32), zeros, CRC-32 of the head (u32)
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

ALIGN = 64
MAGIC = b"vxl2 video memory, records 1\n".ljust(ALIGN, b"\0")
_HEAD = struct.Struct("<8sQI40xI")


class Entry(NamedTuple):
    """One record: where its payload lies, and its checksum."""

    kind: str
    offset: int
    length: int
    checksum: int

    @property
    def end(self) -> int:
        """Where the next record starts."""
        return self.offset + -(-self.length // ALIGN) * ALIGN


def start(file: BinaryIO) -> None:
    """Empty the file and write what comes before the first record."""
    file.seek(0)
    file.truncate()
    file.write(MAGIC)


def append(file: BinaryIO, kind: str, parts: Iterable[np.ndarray | bytes]) -> Entry:
    """Write a record at the file's position. The parts stand in the payload without gaps."""
    parts = [part if isinstance(part, bytes) else memoryview(_raw(part)) for part in parts]
    length, checksum = sum(len(part) for part in parts), 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    head = _HEAD.pack(kind.encode().ljust(8), length, checksum, 0)
    file.write(head[:-4] + struct.pack("<I", zlib.crc32(head[:-4])))
    entry = Entry(kind, file.tell(), length, checksum)
    for part in parts:
        file.write(part)
    file.write(bytes(entry.end - entry.offset - length))
    return entry


def entries(path: str | Path) -> tuple[list[Entry], int] | None:
    """The whole records of a file and where they end, reading heads only; None if it is no such file.

    Payloads are not looked at: see `intact`. Raises OSError for a file that cannot be read.
    """
    found, size = [], os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(ALIGN) != MAGIC:
            return None
        end = ALIGN
        while end + _HEAD.size <= size:
            file.seek(end)
            head = file.read(_HEAD.size)
            kind, length, checksum, of_head = _HEAD.unpack(head)
            if of_head != zlib.crc32(head[:-4]):
                break
            entry = Entry(kind.decode("latin-1").rstrip(), end + _HEAD.size, length, checksum)
            if entry.end > size:
                break
            found.append(entry)
            end = entry.end
    return found, end


def mapped(path: str | Path) -> np.ndarray:
    """The bytes of a file, uint8 [size], read when they are touched."""
    return np.memmap(path, np.uint8, "r")


def payload(data: np.ndarray, entry: Entry) -> np.ndarray:
    """A record's payload in a mapped file: uint8 [length], a view."""
    return data[entry.offset : entry.offset + entry.length]


def intact(data: np.ndarray, entry: Entry) -> bool:
    """Whether a record's payload is what was written. Reads all of it."""
    return zlib.crc32(payload(data, entry)) == entry.checksum


def _raw(array: np.ndarray) -> np.ndarray:
    """The array's bytes: NumPy cannot hand out a buffer of bfloat16."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
