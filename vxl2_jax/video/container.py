"""Video files through PyAV: an index made without decoding, and the wanted frames in order.

What a container says of itself (frame count, rate, duration) is often wrong, so the index pass reads
every packet. Symbols: N frames that will come out of the decoder, P packets, M frames wanted.
"""

import bisect
import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from vxl2_jax.errors import VideoError

# Decoders that turn plain text into pictures: FFmpeg would "play" a .txt or .nfo file.
_TEXT_ART = frozenset({"ansi", "bintext", "xbin", "idf"})
# Decoders that can be told from packet to packet to leave out pictures no other picture refers to.
_LEAVES_OUT = frozenset({"h264", "hevc"})


@dataclasses.dataclass(frozen=True)
class Index:
    """What the packets of a video tell.

    times: float64 (N,), display times in seconds since the first frame, non-decreasing.
    rate: the container's average rate in frames per second, or None.
    pts: int64 (N,), the frames' timestamps in ticks, strictly increasing; None where timestamps do not
      identify frames, which are then told by the order in which they leave the decoder.
    key_pts, key_positions: int64 (K,), per key frame its timestamp (increasing) and its place among
      the packets.
    damaged: some packets do not decode; `times` were counted by decoding.
    """

    times: np.ndarray
    rate: float | None
    pts: np.ndarray | None
    key_pts: np.ndarray
    key_positions: np.ndarray
    damaged: bool


def read_index(path: Path) -> Index:
    """Reads every packet, decoding only the first and the last key frame.

    If those do not decode, or packets are cut off, the whole file is decoded once to count the frames.

    Raises:
      VideoError: no video in it, or none that can be decoded.
    """
    with _opened(path) as (container, stream):
        rate = float(stream.average_rate) if stream.average_rate else None
        reordered = stream.codec_context.has_b_frames
        tick = float(stream.time_base)
        pts, dts, keys = [], [], []
        first_key = last_key = last = None
        whole = True
        position = -1
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                position += 1
                whole = whole and not packet.is_corrupt
                if packet.is_keyframe and packet.pts is not None:
                    keys.append((packet.pts, position))
                    first_key, last_key = first_key or packet, packet
                # Packets outside the edit list are decoded but not shown.
                if not packet.is_discard and _is_shown(stream, packet):
                    pts.append(packet.pts)
                    dts.append(packet.dts)
                last = packet
        except av.FFmpegError:
            whole = False
        whole = whole and bool(pts) and any(bytes(last))
        if not (whole and _decodes(stream, first_key) and _decodes(stream, last_key)):
            return _count_by_decoding(path, rate)

        timed = None not in pts and len(set(pts)) == len(pts)
        # A stream that reorders frames although its timestamps follow storage order has timestamps that
        # do not belong to the frames; AVI stores none at all and FFmpeg's guesses go astray at the end.
        guessed = timed and reordered and (container.format.name == "avi" or pts == sorted(pts))
        ticks = next((sorted(t) for t in (pts, dts) if None not in t), None)
        by_pts = timed and not guessed
        keys.sort()
        return Index(
            times=_times(ticks, tick, len(pts), rate),
            rate=rate,
            pts=np.array(sorted(pts), np.int64) if by_pts else None,
            key_pts=np.array([k[0] for k in keys], np.int64),
            key_positions=np.array([k[1] for k in keys], np.int64),
            damaged=False,
        )


def read_frames(path: Path, index: Index, wanted: np.ndarray, *, skip: bool = True) -> Iterator[np.ndarray]:
    """Decodes the wanted frames, those a full decoding would give.

    Packets up to the key frame before the next wanted frame are not decoded where that key frame lies
    ahead, nor (H.264, HEVC) unwanted pictures that no other refers to; this gives the same pixels (except
    near noise that the index pass did not notice, which a decoder paints over as it can). If a wanted
    frame fails to appear, decoding starts over without skips; if it never appears, the frame before it,
    still on screen, takes its place.

    Args:
      wanted: int64 (M,), frame numbers below N, strictly increasing.
      skip: False decodes every packet.

    Yields:
      M arrays, uint8 (H, W, 3), RGB, turned upright.

    Raises:
      VideoError: the file is gone or has changed so that nothing decodes.
    """
    done = 0
    for skipping in (True, False) if skip and index.pts is not None else (False,):
        for rgb in _one_pass(path, index, wanted[done:], skipping):
            done += 1
            yield rgb
        if done == len(wanted):
            return


def _one_pass(path: Path, index: Index, wanted: np.ndarray, skipping: bool) -> Iterator[np.ndarray]:
    """Yields the wanted frames; with skips, ends early where one of them is lost."""
    with _opened(path) as (container, stream):
        # Several threads may conceal an error differently each time.
        stream.codec_context.thread_count = 1 if index.damaged else 0
        number = None if index.pts is None else {int(p): i for i, p in enumerate(index.pts)}
        wanted_pts = {int(index.pts[i]) for i in wanted} if skipping else set()
        leaves_out = skipping and stream.codec_context.name in _LEAVES_OUT
        at, output, resume = 0, 0, 0
        held: av.VideoFrame | None = None
        for position, packet in enumerate(_packets(container, stream)):
            if packet is not None and skipping:
                if position >= resume and (ahead := _key_before(index, wanted[at])) > position:
                    stream.codec_context.flush_buffers()
                    resume = ahead
                if position < resume:
                    continue
            if leaves_out:
                needed = packet is None or packet.pts in wanted_pts
                stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
            for frame in _decode(stream, packet):
                ordinal = output if number is None else number.get(frame.pts)
                output += 1
                if ordinal is None or (skipping and frame.is_corrupt):
                    continue
                while wanted[at] < ordinal:
                    if skipping:
                        return
                    yield _rgb(held or frame)
                    at += 1
                    if at == len(wanted):
                        return
                if wanted[at] == ordinal:
                    yield _rgb(frame)
                    at += 1
                    if at == len(wanted):
                        return
                held = frame
        if skipping:
            return
        if held is None:
            raise VideoError(f"{path}: no frame of it can be decoded; give another copy of the video")
        rgb = _rgb(held)
        for _ in range(at, len(wanted)):
            yield rgb


def _count_by_decoding(path: Path, rate: float | None) -> Index:
    with _opened(path) as (container, stream):
        stream.codec_context.thread_count = 1
        frames = (frame for packet in _packets(container, stream) for frame in _decode(stream, packet))
        seen = [(frame.pts, frame.is_corrupt) for frame in frames]
        # Half a frame at the cut is painted over by the decoder: not something to promise.
        sound = max((i + 1 for i, (_, corrupt) in enumerate(seen) if not corrupt), default=len(seen))
        ticks = [pts for pts, _ in seen[:sound]]
        if not ticks:
            raise VideoError(f"{path}: no frame of it can be decoded; give another copy of the video")
        known = None if None in ticks else sorted(ticks)
        none = np.zeros(0, np.int64)
        times = _times(known, float(stream.time_base), len(ticks), rate)
        return Index(times=times, rate=rate, pts=None, key_pts=none, key_positions=none, damaged=True)


def _times(ticks: list[int] | None, tick: float, count: int, rate: float | None) -> np.ndarray:
    if ticks is None:
        return np.arange(count) / (rate or 25.0)
    return (np.array(ticks, np.int64) - ticks[0]) * tick


@contextlib.contextmanager
def _opened(path: Path):
    """The container and its main moving-picture stream, decoded by as many threads as help."""
    try:
        # "file:" and the whitelist: a name with a colon, or a playlist, must not reach for the network.
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"{path}: not a video that FFmpeg can read; give a video, an image or a folder") from error
    with container:
        # A cover picture in a music file is a video stream only in name.
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise VideoError(f"{path}: holds no video stream (sound only?); give a file with moving pictures")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(f"{path}: its video codec is unknown to FFmpeg; convert it, for instance to H.264")
        if stream.codec_context.name in _TEXT_ART:
            raise VideoError(f"{path}: is text, not video; give a video, an image or a folder of images")
        stream.thread_type = "AUTO"
        yield container, stream


def _packets(container, stream) -> Iterator[av.Packet | None]:
    """The packets of the index pass, in its order, then None (the decoder's signal to flush)."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.FFmpegError:
        pass
    yield None


def _decode(stream, packet: av.Packet | None) -> list[av.VideoFrame]:
    try:
        return stream.codec_context.decode(packet)
    except av.FFmpegError:
        return []


def _decodes(stream, packet: av.Packet | None) -> bool:
    if packet is None:
        return False
    stream.codec_context.flush_buffers()
    return bool(_decode(stream, packet) or _decode(stream, None))


def _is_shown(stream, packet: av.Packet) -> bool:
    # VP8 keeps pictures that only serve as references in packets of their own; bit 4 says "show".
    return stream.codec_context.name != "vp8" or bool(bytes(packet)[0] & 0x10)


def _key_before(index: Index, wanted: int) -> int:
    """The place of the packet from which the wanted frame can be decoded."""
    at = bisect.bisect_right(index.key_pts, index.pts[wanted]) - 1
    return int(index.key_positions[at]) if at >= 0 else 0


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    rgb = frame.to_ndarray(format="rgb24")
    # Phones store pictures as the sensor lies and say how to turn them, in degrees counter-clockwise.
    return np.rot90(rgb, round(frame.rotation / 90) % 4)
