"""A file of checksummed records, appended one after another.

A writer killed at any moment leaves complete records and at most one torn record at the end, which the next writer
truncates. Numbers in headers are little-endian. Payloads start at multiples of 64 bytes, so that arrays in them can be
memory-mapped.

    file    = MAGIC (64 bytes), record…
    record  = header (64 bytes), payload, zero padding to a multiple of 64 bytes
    header  = kind (8 ASCII characters), payload size (u64), payload CRC-32 (u32), zeros, header CRC-32 (u32)
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

ALIGN = 64
MAGIC = b"vxl2 video memory, records 1\n".ljust(ALIGN, b"\0")
_HEADER = struct.Struct("<8sQI40xI")


class Record(NamedTuple):
    """The kind of a record, and the offset, length and CRC-32 of its payload."""

    kind: str
    offset: int
    length: int
    checksum: int

    @property
    def end(self) -> int:
        """Offset of the next record."""
        return self.offset + -(-self.length // ALIGN) * ALIGN


def start(file: BinaryIO) -> None:
    """Truncate the file and write the magic bytes."""
    file.seek(0)
    file.truncate()
    file.write(MAGIC)


def append(file: BinaryIO, kind: str, parts: Iterable[np.ndarray | bytes]) -> Record:
    """Write a record at the file's current position. Its payload is the concatenation of the parts' bytes."""
    buffers = [part if isinstance(part, bytes) else memoryview(_as_bytes(part)) for part in parts]
    length, checksum = sum(map(len, buffers)), 0
    for buffer in buffers:
        checksum = zlib.crc32(buffer, checksum)
    header = _HEADER.pack(kind.encode().ljust(8), length, checksum, 0)
    file.write(header[:-4] + struct.pack("<I", zlib.crc32(header[:-4])))
    record = Record(kind, file.tell(), length, checksum)
    for buffer in buffers:
        file.write(buffer)
    file.write(bytes(record.end - record.offset - length))
    return record


def scan(path: str | Path) -> tuple[list[Record], int] | None:
    """Read the headers of a file, not its payloads (see `is_intact`).

    Returns:
      The complete records and the offset where they end, or None if the file does not start with MAGIC.

    Raises:
      OSError: the file cannot be read.
    """
    records, size = [], os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(ALIGN) != MAGIC:
            return None
        end = ALIGN
        while end + _HEADER.size <= size:
            file.seek(end)
            header = file.read(_HEADER.size)
            kind, length, checksum, header_checksum = _HEADER.unpack(header)
            if header_checksum != zlib.crc32(header[:-4]):
                break
            record = Record(kind.decode("latin-1").rstrip(), end + _HEADER.size, length, checksum)
            if record.end > size:
                break
            records.append(record)
            end = record.end
    return records, end


def memory_map(path: str | Path) -> UInt8[np.ndarray, " size"]:
    """The bytes of a file, read from disk when they are accessed."""
    return np.memmap(path, np.uint8, "r")


def payload(data: UInt8[np.ndarray, " size"], record: Record) -> UInt8[np.ndarray, " length"]:
    """A view of a record's payload in a memory-mapped file."""
    return data[record.offset : record.offset + record.length]


def is_intact(data: UInt8[np.ndarray, " size"], record: Record) -> bool:
    """Whether a record's payload matches its checksum. Reads the whole payload."""
    return zlib.crc32(payload(data, record)) == record.checksum


def _as_bytes(array: Shaped[np.ndarray, ...]) -> UInt8[np.ndarray, " bytes"]:
    """The array's bytes. NumPy cannot export a buffer of bfloat16 directly."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
