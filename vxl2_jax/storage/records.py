"""A file of checksummed records, appended one after another.

A writer killed at any moment leaves complete records and at most one torn record at the end, which the next writer
truncates. Numbers in headers are little-endian. Payloads start at multiples of 64 bytes.

    file    = MAGIC (64 bytes), record…
    record  = header (64 bytes), payload, zero padding to a multiple of 64 bytes
    header  = kind (8 ASCII characters), payload size (u64), payload CRC-32 (u32), zeros, header CRC-32 (u32)
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterable
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


def first_record(read: Callable[[int, int], bytes]) -> tuple[str, bytes]:
    """(kind, payload) of the first record of a file, of which read(start, stop) gives bytes. Raises ValueError for no such file."""
    begin = ALIGN + _HEADER.size
    head = read(0, begin)
    if len(head) < begin or head[:ALIGN] != MAGIC:
        raise ValueError("not a file of records")
    kind, length, checksum, header_checksum = _HEADER.unpack(head[ALIGN:])
    payload = read(begin, begin + length) if header_checksum == zlib.crc32(head[ALIGN:-4]) else b""
    if zlib.crc32(payload) != checksum or len(payload) != length:
        raise ValueError("the first record is damaged")
    return kind.decode("latin-1").rstrip(), payload


class RecordReader:
    """A file of records, open for reading.

    Payloads are read when they are needed, not memory-mapped: a file that is truncated while it is mapped ends the
    process. A file that was changed since it was opened is refused; one that was replaced is still read as it was.

    Attributes:
      records: the complete records.
      end: the offset where they end.
      size: bytes of the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read the headers. Raises OSError if the file cannot be read, ValueError if it does not start with MAGIC."""
        self._file, self._lock, self._status = file, threading.Lock(), _status_of(file)
        self.size = self._status[0]
        if self.size < ALIGN or self._read(0, ALIGN).tobytes() != MAGIC:
            raise ValueError("not a file of records")
        self.records: list[Record] = []
        self.end = ALIGN
        while self.end + _HEADER.size <= self.size:
            header = self._read(self.end, _HEADER.size).tobytes()
            kind, length, checksum, header_checksum = _HEADER.unpack(header)
            record = Record(kind.decode("latin-1").rstrip(), self.end + _HEADER.size, length, checksum)
            if header_checksum != zlib.crc32(header[:-4]) or record.end > self.size:
                break
            self.records.append(record)
            self.end = record.end

    def payload(self, record: Record, verify: bool = True) -> UInt8[np.ndarray, " length"]:
        """Read a record's payload.

        Raises OSError if the file cannot be read or was changed since it was opened, ValueError if `verify` and the
        payload does not match its checksum.
        """
        data = self._read(record.offset, record.length)
        if verify and zlib.crc32(data) != record.checksum:
            raise ValueError(f"the record {record.kind} at {record.offset} does not match its checksum")
        return data

    def _read(self, offset: int, length: int) -> UInt8[np.ndarray, " length"]:
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(length)
            changed = _status_of(self._file) != self._status
        if changed or len(data) != length:
            raise OSError(errno.ESTALE, "the file was changed while it was in use")
        return np.frombuffer(data, np.uint8)


def _status_of(file: BinaryIO) -> tuple[int, int]:
    """(size, time of the last change) of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _as_bytes(array: Shaped[np.ndarray, ...]) -> UInt8[np.ndarray, " bytes"]:
    """The array's bytes. NumPy cannot export a buffer of bfloat16 directly."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
