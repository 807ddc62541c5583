"""The packets of a long MP4 file from its own sample table, without reading the file.

FFmpeg reads most of the table when it opens the file; the differences between display and decoding time (box `ctts`) it keeps
to itself, so they are read here. What the table says is compared with packets at both ends of the film.
Format: ISO/IEC 14496-12.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Bool, Int64

from vxl2_jax import files

MIN_PACKETS = 20_000
"""Shorter films are indexed as quickly by reading them."""
_MAX_TABLE = 512 * 2**20
_NESTED = {b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl"}
_KEY, _DISCARD = 1, 2
"""Flags of FFmpeg's index entries."""
_COMPARED = 64


class SampleTable(NamedTuple):
    """The packets in the order in which they are stored; times in ticks of the stream.

    ends: packets at the beginning and at the end, from the last key frame on, as FFmpeg reads them.
    """

    pts: Int64[np.ndarray, " P"]
    dts: Int64[np.ndarray, " P"]
    sizes: Int64[np.ndarray, " P"]
    key: Bool[np.ndarray, " P"]
    discard: Bool[np.ndarray, " P"]
    ends: tuple[list[av.Packet], list[av.Packet]]


def read(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> SampleTable | None:
    """The packets of a stream; None if the file has no table for it, or one that does not agree with the file."""
    entries = np.array([(e.timestamp, e.size, e.flags, e.pos) for e in stream.index_entries], np.int64)
    dts, sizes, flags, places = entries.T
    offsets = _composition_offsets(path, stream.id, len(entries))
    if offsets is None:
        return None
    there = (sizes > 0) & (places + sizes <= path.stat().st_size)
    # What follows a missing packet would be read, but a download has no holes.
    count = len(there) if there.all() else int(np.argmin(there | (sizes == 0)))
    kept = np.flatnonzero(there[:count])
    dts, sizes, flags, offsets = dts[kept], sizes[kept], flags[kept], offsets[kept]
    key = (flags & _KEY) > 0
    if not key.any():
        return None
    first = _packets(container, stream, _COMPARED)[: len(dts)]
    last_key = int(np.flatnonzero(key)[-1])
    # A constant, which FFmpeg adds if offsets are negative.
    begins = first[0].pts if first else None
    pts = dts + offsets + (0 if begins is None else begins - dts[0] - offsets[0])
    try:
        container.seek(int(pts[last_key]), stream=stream)
    except av.FFmpegError:
        return None
    last = _packets(container, stream, len(dts) - last_key + 1)[: len(dts) - last_key]
    for packets, begin in ((first, 0), (last, last_key)):
        part = slice(begin, begin + _COMPARED if begin == 0 else None)
        expected = list(zip(*(column[part].tolist() for column in (pts, dts, sizes, key)), strict=True))
        if [(p.pts, p.dts, p.size, p.is_keyframe) for p in packets] != expected:
            return None
    return SampleTable(pts, dts, sizes, key, (flags & _DISCARD) > 0, (first, last))


def _packets(container: av.container.InputContainer, stream: av.VideoStream, count: int) -> list[av.Packet]:
    found: list[av.Packet] = []
    try:
        for packet in container.demux(stream):
            if packet.size:
                found.append(packet)
            if len(found) == count:
                break
    except av.FFmpegError:
        pass
    return found


def _composition_offsets(path: Path, track: int, count: int) -> Int64[np.ndarray, " P"] | None:
    """Display minus decoding time of each of `count` packets of a track, in ticks; None if unknown."""
    boxes = _movie_boxes(path)
    if b"mvex" in {kind for kind, _ in boxes}:
        return None  # fragmented: the movie box lists only a part of the packets
    found: dict[bytes, bytes] = {}
    wanted = False
    for kind, content in boxes:
        if kind == b"tkhd":
            wanted = int.from_bytes(content[20:24] if content[:1] == b"\1" else content[12:16], "big") == track
        elif wanted:
            found.setdefault(kind, content)
    if b"stsz" not in found and b"stz2" not in found:
        return None
    if int.from_bytes(found.get(b"stsd", b"")[4:8]) != 1 or _edits(found.get(b"elst", b"")) > 1:
        return None  # the decoder's settings change, or packets are repeated or left out within the film
    if b"ctts" not in found:
        return np.zeros(count, np.int64)
    runs = np.frombuffer(found[b"ctts"][8:], ">i4")
    runs = runs[: len(runs) // 2 * 2].reshape(-1, 2).astype(np.int64)
    if (runs[:, 0] < 0).any() or runs[:, 0].sum() != count:
        return None
    return np.repeat(runs[:, 1], runs[:, 0])


def _edits(edit_list: bytes) -> int:
    """Parts of the film that an edit list shows."""
    width = 8 if edit_list[:1] == b"\1" else 4
    starts = range(8 + width, len(edit_list) - width + 1, 2 * width + 4)
    return sum(edit_list[at : at + width] != b"\xff" * width for at in starts)


def _movie_boxes(path: Path) -> list[tuple[bytes, bytes]]:
    """(kind, content) of all boxes in the movie box that hold no other boxes, and of the header of its fragments."""
    with files.open_regular(path, files.VIDEO) as file:
        size = path.stat().st_size
        at = 0
        while at + 8 <= size:
            file.seek(at)
            length, kind, header = _header(file.read(16), size - at)
            if kind == b"moov" and length <= _MAX_TABLE:
                file.seek(at + header)
                return list(_inner(file.read(length - header)))
            if length < header:
                break
            at += length
    return []


def _inner(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(content):
        length, kind, header = _header(content[at : at + 16], len(content) - at)
        if length < header:
            return
        part = content[at + header : at + length]
        if kind in _NESTED:
            yield from _inner(part)
        else:
            yield kind, part
        at += length


def _header(data: bytes, left: int) -> tuple[int, bytes, int]:
    """(length with header, kind, length of the header) of a box; a length of 0 means: up to the end."""
    length, kind = struct.unpack(">I4s", data[:8])
    if length == 1 and len(data) == 16:
        return int.from_bytes(data[8:16], "big"), kind, 16
    return length or left, kind, 8
