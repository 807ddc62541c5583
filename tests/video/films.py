"""Films made packet by packet: what is on screen at an instant follows from the lists that they are made of.

A stream of pictures is a list of times, in ticks, in display order; `clips.number_of` reads which one a frame shows.
"""

import io
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from clips import HEIGHT, WIDTH, picture

TS_PACKET = 188
TS_CLOCK = 90_000
TS_WRAP = 2**33


@dataclass(frozen=True)
class Pictures:
    """A stream of pictures.

    pts: when each is shown, in ticks.
    numbers: what each shows; None: 0, 1, 2 ...
    ticks: per second.
    rate: in frames per second, as the header states it.
    rotation: of the display, in degrees counter-clockwise.
    cover: a picture of the file, not a film.
    all_keys: every packet is flagged as a key frame.
    options: of the encoder.
    """

    pts: Sequence[int]
    numbers: Sequence[int] | None = None
    ticks: int = 1000
    rate: Fraction | int = 10
    codec: str = "libx264"
    size: tuple[int, int] = (HEIGHT, WIDTH)
    pix_fmt: str = "yuv420p"
    rotation: int = 0
    cover: bool = False
    all_keys: bool = False
    options: dict[str, str] = field(default_factory=dict)

    def encode(self, container: av.container.OutputContainer) -> Callable[[], Iterator[av.Packet]]:
        """Add the stream to a container. Returns what makes its packets, in decode order, once all streams are added."""
        stream = container.add_stream(self.codec, rate=self.rate)
        stream.height, stream.width = self.size
        stream.pix_fmt = self.pix_fmt
        stream.options = self.options
        stream.codec_context.thread_count = 1
        tick = Fraction(1, self.ticks)
        stream.time_base = tick
        if self.cover:
            stream.disposition = Disposition.attached_pic
        if self.rotation:
            stream.set_display_rotation(self.rotation)

        # Decoding times: those of the same place in display order, but strictly below all later ones.
        dts = [int(pts) for pts in self.pts]
        for place in range(len(dts) - 2, -1, -1):
            dts[place] = min(dts[place], dts[place + 1] - 1)
        step = int(self.ticks / self.rate)

        def packets() -> Iterator[av.Packet]:
            numbers = range(len(self.pts)) if self.numbers is None else self.numbers
            for place, number in itertools.chain(enumerate(numbers), [(0, None)]):
                frame = None
                if number is not None:
                    frame = av.VideoFrame.from_ndarray(picture(number, *self.size), format="rgb24")
                    frame.pts, frame.time_base = place, Fraction(1) / self.rate
                for packet in stream.encode(frame):
                    shown, decoded = packet.pts, packet.dts
                    packet.pts = int(self.pts[shown])
                    packet.dts = dts[decoded] if decoded >= 0 else dts[0] + decoded * step
                    packet.time_base, packet.duration = tick, step
                    packet.is_keyframe = packet.is_keyframe or self.all_keys
                    yield packet

        return packets


@dataclass(frozen=True)
class Sound:
    """Silence from one second to another."""

    start_s: float
    end_s: float
    codec: str = "aac"

    def encode(self, container: av.container.OutputContainer) -> Callable[[], Iterator[av.Packet]]:
        stream = container.add_stream(self.codec, rate=16000)
        stream.layout = "mono"

        def packets() -> Iterator[av.Packet]:
            kind = stream.codec_context.format
            silence = np.zeros((1, 1024), np.float32 if kind.name.startswith("flt") else np.int16)
            for start in range(int(self.start_s * 16000), int(self.end_s * 16000), 1024):
                frame = av.AudioFrame.from_ndarray(silence, format=kind.name, layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
                yield from stream.encode(frame)
            yield from stream.encode(None)

        return packets


@dataclass(frozen=True)
class Lines:
    """A stream of subtitles or data: one packet at each of `seconds`."""

    seconds: Sequence[float]
    codec: str = "srt"

    def encode(self, container: av.container.OutputContainer) -> Callable[[], Iterator[av.Packet]]:
        stream = container.add_mux_stream(self.codec) if self.codec != "data" else container.add_data_stream()

        def packets() -> Iterator[av.Packet]:
            for second in self.seconds:
                packet = av.Packet(b"\x00\x05hello" if self.codec == "mov_text" else b"hello")
                packet.stream = stream
                packet.time_base, packet.pts, packet.duration = Fraction(1, 1000), round(second * 1000), 900
                packet.dts = packet.pts
                yield packet

        return packets


Stream = Pictures | Sound | Lines


def even(count: int, rate: float, ticks: int = 1000, start: float = 0) -> list[int]:
    """Times of `count` pictures at a constant rate, in ticks."""
    return [round((start + i / rate) * ticks) for i in range(count)]


class _Pipe(io.RawIOBase):
    """A file that cannot seek."""

    def __init__(self):
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.written += data
        return len(data)


def write_film(
    path: Path,
    *streams: Stream,
    format: str | None = None,
    options: dict[str, str] | None = None,
    piped: bool = False,
) -> Path:
    """Write a film. Packets are stored by decoding time, and of one stream in decode order.

    Args:
      path: its name chooses the container unless `format` does.
      options: of the container.
      piped: written like a live recording, without going back to complete the header.
    """
    target = _Pipe() if piped else str(path)
    if piped and format is None:
        format = {"mkv": "matroska", "ts": "mpegts"}.get(path.suffix[1:], path.suffix[1:])
    with av.open(target, "w", format=format, options=options or {}) as container:
        makers = [stream.encode(container) for stream in streams]
        packets = []
        for maker in makers:
            latest = -np.inf
            for packet in maker():
                latest = max(latest, float(packet.dts * packet.time_base))
                packets.append((latest, packet))
        for _, packet in sorted(packets, key=lambda item: item[0]):
            container.mux(packet)
    if piped:
        path.write_bytes(target.written)
    return path


def film_bytes(*streams: Stream, folder: Path, suffix: str = "ts", **options) -> bytes:
    """The content of such a film."""
    path = write_film(folder / f"part.{suffix}", *streams, **options)
    data = path.read_bytes()
    path.unlink()
    return data


def restamp(data: bytes, change: Callable[[int, int], int | None]) -> bytes:
    """MPEG-TS with other timestamps.

    Args:
      data: MPEG-TS.
      change: (number of the picture in decode order, its time in ticks of 1/90,000 s) → its new time, modulo 2**33.
        Called for presentation and for decoding times. None removes both.
    """
    found, number = bytearray(data), 0
    for start in range(0, len(found), TS_PACKET):
        begins, fields = found[start + 1] & 0x40, found[start + 3] >> 4
        payload = start + 4 + (1 + found[start + 4] if fields & 2 else 0)
        # A packet of video (streams 0xE0 to 0xEF) begins.
        if not begins or not fields & 1 or found[payload : payload + 3] != b"\0\0\1" or found[payload + 3] >> 4 != 0xE:
            continue
        kinds = found[payload + 7] >> 6
        for place in range(payload + 9, payload + 9 + 5 * (kinds // 2 + kinds % 2), 5):
            new = change(number, _read_stamp(found[place : place + 5]))
            if new is None:
                found[payload + 7] &= 0x3F
                found[place : place + 5] = b"\xff" * 5
            else:
                found[place : place + 5] = _stamp(found[place] >> 4, new % TS_WRAP)
        number += 1
    return bytes(found)


def _read_stamp(data: bytes) -> int:
    return (data[0] >> 1 & 7) << 30 | data[1] << 22 | data[2] >> 1 << 15 | data[3] << 7 | data[4] >> 1


def _stamp(kind: int, ticks: int) -> bytes:
    high, middle, low = ticks >> 30, ticks >> 15 & 0x7FFF, ticks & 0x7FFF
    return bytes([kind << 4 | high << 1 | 1, middle >> 7, (middle << 1 | 1) & 255, low >> 7, (low << 1 | 1) & 255])


def two_programs(first: bytes, second: bytes) -> bytes:
    """MPEG-TS of two programs from two files of one program each, which have different ids."""
    programs = [_pat(data) for data in (first, second)]
    table = b"\x00\xb0" + bytes([5 + 8 + 4]) + b"\x00\x01\xc1\x00\x00" + b"".join(programs)
    table += _crc(table).to_bytes(4, "big")
    parts = [[data[i : i + TS_PACKET] for i in range(0, len(data), TS_PACKET)] for data in (first, second)]
    joined, count = bytearray(), 0
    for pair in itertools.zip_longest(*parts):
        for packet in pair:
            if packet is None:
                continue
            if _pid(packet) == 0:
                packet = (b"\x47\x40\x00" + bytes([0x10 | count % 16]) + b"\0" + table).ljust(TS_PACKET, b"\xff")
                count += 1
            joined += packet
    return bytes(joined)


def _pid(packet: bytes) -> int:
    return (packet[1] & 0x1F) << 8 | packet[2]


def _pat(data: bytes) -> bytes:
    """The four bytes of the only program in the association table."""
    table = next(data[i : i + TS_PACKET] for i in range(0, len(data), TS_PACKET) if _pid(data[i : i + TS_PACKET]) == 0)
    return table[13:17]


def _crc(data: bytes) -> int:
    """CRC-32 of MPEG: as zlib's, without reflection and complement."""
    reflected = zlib.crc32(bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)


def boxes(data: bytes) -> list[tuple[bytes, int, int]]:
    """(kind, start, end) of the boxes of an mp4 file."""
    found, place = [], 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        found.append((data[place + 4 : place + 8], place, place + size))
        place += max(size, 8)
    return found
