"""Video files with PyAV: an index built without decoding, and decoding of chosen frames.

A container's own statements (frame count, rate, duration) are often wrong, so the index pass reads every packet.
Symbols: N frames that the decoder will return, M frames to read, K key frames.
"""

import bisect
import contextlib
import dataclasses
from collections.abc import Generator, Iterator
from pathlib import Path

import av
import av.stream
import numpy as np
from jaxtyping import Float64, Int64, UInt8

from vxl2_jax.errors import VideoError

RGBFrame = UInt8[np.ndarray, "height width 3"]
# Decoders that render plain text as pictures: FFmpeg would "play" a .txt or .nfo file.
_LISTS = ("hls", "concat", "dash", "imf")
"""Formats of FFmpeg that name the files of a video."""
_TEXT_DECODERS = frozenset({"ansi", "bintext", "xbin", "idf"})
# Decoders that can skip non-reference frames packet by packet.
_SKIPPING_DECODERS = frozenset({"h264", "hevc"})


@dataclasses.dataclass(frozen=True)
class PacketIndex:
    """What the packets of a video contain.

    times: display times in seconds since the first frame, non-decreasing.
    rate: the container's average rate in frames per second, or None.
    pts: the frames' timestamps in ticks, strictly increasing; None if timestamps do not identify frames, which are then
      numbered in the order in which the decoder returns them.
    key_pts, key_packets: timestamp (increasing) and packet number of each key frame.
    damaged: some packets cannot be decoded; `times` were found by decoding.
    """

    times: Float64[np.ndarray, " N"]
    rate: float | None
    pts: Int64[np.ndarray, " N"] | None
    key_pts: Int64[np.ndarray, " K"]
    key_packets: Int64[np.ndarray, " K"]
    damaged: bool


def read_index(path: Path) -> PacketIndex:
    """Read every packet, decoding only the first and the last key frame.

    If these cannot be decoded, or packets are truncated, the whole file is decoded once to count its frames.

    Raises VideoError if the file holds no video, or none that can be decoded.
    """
    with _open(path) as (container, stream):
        rate = float(stream.average_rate) if stream.average_rate else None
        reorders = stream.codec_context.has_b_frames
        tick = float(stream.time_base)
        pts, dts, keys = [], [], []
        first_key = last_key = last = None
        complete = True
        number = -1
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                number += 1
                complete = complete and not packet.is_corrupt
                if packet.is_keyframe and packet.pts is not None:
                    keys.append((packet.pts, number))
                    first_key, last_key = first_key or packet, packet
                # Packets outside the edit list are decoded but not shown.
                if not packet.is_discard and _is_shown(stream, packet):
                    pts.append(packet.pts)
                    dts.append(packet.dts)
                last = packet
        except av.FFmpegError:
            complete = False
        complete = complete and bool(pts) and last is not None and any(bytes(last))
        if not (complete and _can_decode(stream, first_key) and _can_decode(stream, last_key)):
            return _index_by_decoding(path, rate)

        unique = None not in pts and len(set(pts)) == len(pts)
        # If a stream reorders frames but its timestamps follow storage order, the timestamps do not belong to the
        # frames. AVI stores no timestamps, and FFmpeg's guesses are wrong near the end.
        guessed = unique and reorders and (container.format.name == "avi" or pts == sorted(pts))
        ticks = next((sorted(t) for t in (pts, dts) if None not in t), None)
        keys.sort()
        return PacketIndex(
            times=_times(ticks, tick, len(pts), rate),
            rate=rate,
            pts=np.array(sorted(pts), np.int64) if unique and not guessed else None,
            key_pts=np.array([k[0] for k in keys], np.int64),
            key_packets=np.array([k[1] for k in keys], np.int64),
            damaged=False,
        )


def read_frames(
    path: Path, index: PacketIndex, frames: Int64[np.ndarray, " M"], *, skip: bool = True
) -> Iterator[RGBFrame]:
    """Decode the given frames, with the same pixels as if the whole file was decoded.

    Skips packets up to the last key frame before the next frame to read and, in H.264 and HEVC, non-reference frames.
    Only near damage that the index pass did not notice may the decoder's error concealment then differ. If a frame does
    not appear, decoding restarts without skipping; if it still does not appear, the frame before it is repeated.

    Args:
      path: the file.
      index: its index.
      frames: frame numbers below N, strictly increasing.
      skip: False decodes every packet.

    Yields:
      M RGB frames, upright.

    Raises:
      VideoError: the file is missing, or has changed and cannot be decoded.
    """
    done = 0
    for skipping in (True, False) if skip and index.pts is not None else (False,):
        for rgb in _decode_once(path, index, frames[done:], skipping):
            done += 1
            yield rgb
        if done == len(frames):
            return


def _decode_once(path: Path, index: PacketIndex, frames: Int64[np.ndarray, " M"], skipping: bool) -> Iterator[RGBFrame]:
    """Yield the given frames; when skipping, stop early if one does not appear."""
    with _open(path) as (container, stream):
        # Several threads may conceal an error differently each time.
        stream.codec_context.thread_count = 1 if index.damaged else 0
        pts = index.pts
        numbers: dict[int | None, int] = {} if pts is None else {int(p): i for i, p in enumerate(pts)}
        pts_to_read = set() if pts is None else set(pts[frames].tolist())
        skips_non_reference = skipping and stream.codec_context.name in _SKIPPING_DECODERS
        done, decoded, resume_at = 0, 0, 0
        previous: av.VideoFrame | None = None
        for packet_number, packet in enumerate(_packets(container, stream)):
            if packet is not None and skipping:
                if packet_number >= resume_at and (key := _key_packet_before(index, frames[done])) > packet_number:
                    stream.codec_context.flush_buffers()
                    resume_at = key
                if packet_number < resume_at:
                    continue
            if skips_non_reference:
                needed = packet is None or packet.pts in pts_to_read
                stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
            for frame in _decode(stream, packet):
                number = decoded if pts is None else numbers.get(frame.pts)
                decoded += 1
                if number is None or (skipping and frame.is_corrupt):
                    continue
                while frames[done] < number:
                    if skipping:
                        return
                    yield _to_rgb(previous or frame)
                    done += 1
                    if done == len(frames):
                        return
                if frames[done] == number:
                    yield _to_rgb(frame)
                    done += 1
                    if done == len(frames):
                        return
                previous = frame
        if skipping:
            return
        if previous is None:
            raise VideoError(f"{path}: no frame of it can be decoded; give another copy of the video")
        rgb = _to_rgb(previous)
        for _ in range(done, len(frames)):
            yield rgb


def _index_by_decoding(path: Path, rate: float | None) -> PacketIndex:
    with _open(path) as (container, stream):
        stream.codec_context.thread_count = 1
        frames = (frame for packet in _packets(container, stream) for frame in _decode(stream, packet))
        decoded = [(frame.pts, frame.is_corrupt) for frame in frames]
        # Drop corrupt frames at the end: the decoder concealed what was cut off.
        count = max((i + 1 for i, (_, corrupt) in enumerate(decoded) if not corrupt), default=len(decoded))
        pts = [pts for pts, _ in decoded[:count]]
        if not count:
            raise VideoError(f"{path}: no frame of it can be decoded; give another copy of the video")
        known = sorted(p for p in pts if p is not None)
        ticks = known if len(known) == count else None
        empty = np.zeros(0, np.int64)
        times = _times(ticks, float(stream.time_base), count, rate)
        return PacketIndex(times=times, rate=rate, pts=None, key_pts=empty, key_packets=empty, damaged=True)


def _times(ticks: list[int] | None, tick: float, count: int, rate: float | None) -> Float64[np.ndarray, " N"]:
    if ticks is None:
        return np.arange(count) / (rate or 25.0)
    return (np.array(ticks, np.int64) - ticks[0]) * tick


@contextlib.contextmanager
def _open(path: Path) -> Generator[tuple[av.container.InputContainer, av.VideoStream], None, None]:
    """The container and its main video stream, set up for multi-threaded decoding."""
    try:
        # "file:" and the whitelist: a name with a colon, or a playlist, must not open network connections.
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"{path}: not a video that FFmpeg can read; give a video, an image or a folder") from error
    with container:
        if container.format.name in _LISTS:  # a memory would be recognised by the list, whatever the files hold
            raise VideoError(
                f"{path}: a list of other files; make one of them, with `ffmpeg -i LIST -c copy video.mkv`"
            )
        # The cover picture of a music file is stored as a video stream.
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise VideoError(f"{path}: holds no video stream (sound only?); give a file with moving pictures")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(f"{path}: its video codec is unknown to FFmpeg; convert it, for instance to H.264")
        if stream.codec_context.name in _TEXT_DECODERS:
            raise VideoError(f"{path}: is text, not video; give a video, an image or a folder of images")
        stream.thread_type = "AUTO"
        yield container, stream


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet | None]:
    """The packets in the order of the index pass, then None, which flushes the decoder."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.FFmpegError:
        pass
    yield None


def _decode(stream: av.VideoStream, packet: av.Packet | None) -> list[av.VideoFrame]:
    try:
        return stream.codec_context.decode(packet)
    except av.FFmpegError:
        return []


def _can_decode(stream: av.VideoStream, packet: av.Packet | None) -> bool:
    if packet is None:
        return False
    stream.codec_context.flush_buffers()
    return bool(_decode(stream, packet) or _decode(stream, None))


def _is_shown(stream: av.VideoStream, packet: av.Packet) -> bool:
    # VP8 stores frames that are only references in packets of their own; bit 4 says whether a frame is shown.
    return stream.codec_context.name != "vp8" or bool(bytes(packet)[0] & 0x10)


def _key_packet_before(index: PacketIndex, frame: int | np.integer) -> int:
    """Number of the packet from which on the frame can be decoded."""
    assert index.pts is not None
    key = bisect.bisect_right(index.key_pts, index.pts[frame]) - 1
    return int(index.key_packets[key]) if key >= 0 else 0


def _to_rgb(frame: av.VideoFrame) -> RGBFrame:
    rgb = frame.to_ndarray(format="rgb24")
    # Phones store frames as the sensor sees them, with the rotation in degrees counter-clockwise.
    return np.rot90(rgb, round(frame.rotation / 90) % 4)
