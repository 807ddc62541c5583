"""Decoding the chosen frames of a video, several runs at a time.

A *run* is the packets from a key frame to the last wanted frame that depends on it. One thread reads packets; workers with
a decoder each decode a run, convert its wanted frames and return them. Frames come back in order. A run that does not
give all its frames is decoded again, with the packets since two key frames before it.

Symbols: M frames to read.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.codec.hwaccel import hwdevices_available
from jaxtyping import Int64, UInt8

from vxl2_jax.errors import VideoError
from vxl2_jax.video.container import (
    NoHardwareError,
    PacketIndex,
    decode,
    open_container,
    packets_of,
    video_streams,
)

RGBFrame = UInt8[np.ndarray, "height width 3"]
Convert = Callable[[RGBFrame], np.ndarray]
MAX_BYTES = 256 * 2**20
"""Packets of the runs that are decoded at the same time, or waited for."""
MAX_FRAMES = 1024
"""Converted frames of these runs: 450 MB of 384 × 384 pixels."""
_SKIPPING_DECODERS = frozenset({"h264", "hevc"})
"""Decoders that can skip non-reference frames packet by packet."""
_DEVICES = ("cuda", "videotoolbox", "vaapi", "qsv", "d3d11va")
_RUN_DECODERS = _SKIPPING_DECODERS | {"vp8", "vp9", "av1", "libdav1d", "mpeg1video", "mpeg2video", "mpeg4"}
"""Decoders that need no more than their header and the colours that the container states, and gain by runs."""


@dataclasses.dataclass
class Losses:
    """Frames that could not be read: replaced by the one before, or filled in by the decoder where data was missing.

    no_hardware: why frames were not decoded in hardware, if that was asked for.
    """

    replaced: int = 0
    concealed: int = 0
    no_hardware: str = ""

    def clear(self) -> None:
        """Count from nothing."""
        self.replaced, self.concealed, self.no_hardware = 0, 0, ""

    def add(self, other: Losses) -> None:
        """Add the counts of another part of the video."""
        self.replaced += other.replaced
        self.concealed += other.concealed


class PacketRun(NamedTuple):
    """Packets `start` … `stop`, both included, and the frames to take of them: packet → number among the M frames."""

    start: int
    stop: int
    frames: dict[int | None, int]


def read_frames(
    path: Path,
    index: PacketIndex,
    frames: Int64[np.ndarray, " M"],
    convert: Convert,
    *,
    threads: int = 1,
    skip: bool = True,
    hardware: bool = False,
    losses: Losses | None = None,
) -> Generator[np.ndarray, None, None]:
    """Decode the given frames, with the same pixels as if the whole file was decoded.

    Packets that no wanted frame depends on are skipped and, in H.264 and HEVC, so are non-reference frames. Only near
    damage may the decoder's error concealment then differ. If a frame does not appear, it is decoded again from two key
    frames before it on, without skipping; if it still does not appear, the frame before it is repeated.

    Args:
      path: the file.
      index: its index.
      frames: frame numbers below N, strictly increasing.
      convert: applied to each RGB frame, upright, in several threads.
      threads: decoders that run at the same time.
      skip: False decodes every packet.
      hardware: decode on a device that FFmpeg knows, if it can, and in software otherwise.
      losses: counts what could not be read.

    Yields:
      M converted frames.

    Raises:
      VideoError: the file is missing, or has changed and cannot be decoded.
    """
    losses, done = Losses() if losses is None else losses, 0
    if hardware and index.packets is not None:
        try:
            with closing(_read_in_hardware(path, index, frames, convert, threads)) as decoded:
                for one in decoded:
                    done += 1
                    yield one
        except NoHardwareError as error:
            losses.no_hardware = str(error)
        if done == len(frames):
            return
        losses.no_hardware = losses.no_hardware or f"it gave {done:,} of {len(frames):,} frames"
        frames, done = frames[done:], 0
    if skip and index.packets is not None and len(frames):
        runs = plan_runs(index, frames)
        with open_container(path) as container:
            (stream,) = video_streams(path, container, index.stream)
            suits = stream.codec_context.name in _RUN_DECODERS and _suits(runs, index, threads)
        attempt = _read_runs(path, index, runs, convert, threads, losses) if suits else None
        if attempt is None:
            attempt = _converted(_read_through(path, index, frames, threads), convert, index.rotation, threads)
        with closing(attempt):
            for one in attempt:
                done += 1
                yield one
        if done == len(frames):
            return
    start = 0
    if skip and index.packets is not None:
        start = _packets_before(index, frames[done])
    # Several threads conceal an error differently from one: they stop at the first.
    for count in (1,) if done or index.damaged or threads == 1 else (threads, 1):
        rest = _read_carefully(path, index, frames[done:], start, count, losses)
        with closing(_converted(rest, convert, index.rotation, count)) as last:
            for one in last:
                done += 1
                yield one
        if done == len(frames):
            return


def _read_in_hardware(
    path: Path, index: PacketIndex, frames: Int64[np.ndarray, " M"], convert: Convert, threads: int
) -> Generator[np.ndarray, None, None]:
    """As `_read_through`, on the first device that can decode the film. Raises NoHardwareError if none can."""
    reasons = []
    for device in [name for name in _DEVICES if name in hwdevices_available()]:
        try:
            with open_container(path, device):
                pass
        except NoHardwareError as error:
            reasons.append(str(error))
            continue
        decoded = _read_through(path, index, frames, 1, device)
        yield from _converted(decoded, convert, index.rotation, threads)
        return
    raise NoHardwareError("; ".join(reasons) or "this build of FFmpeg knows no device")


def plan_runs(index: PacketIndex, frames: Int64[np.ndarray, " M"]) -> list[PacketRun]:
    """The runs that hold the frames, in order. Runs may share packets: pictures that are stored after a key frame but shown
    before it belong to the run before."""
    assert index.packets is not None
    starts, packets = _key_packets(index, frames), index.packets[frames]
    edges = [0, *(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(frames)]
    return [
        PacketRun(
            int(min(starts[begin], packets[begin:end].min())),
            int(packets[begin:end].max()),
            {int(packet): at for at, packet in enumerate(packets[begin:end], begin)},
        )
        for begin, end in pairwise(edges)
    ]


def _suits(runs: Sequence[PacketRun], index: PacketIndex, threads: int) -> bool:
    """Whether the runs are many and short enough to be decoded side by side."""
    total = np.concatenate([[0], np.cumsum(index.sizes)])
    most_bytes = max(int(total[run.stop + 1] - total[run.start]) for run in runs)
    most_packets = max(run.stop - run.start for run in runs)
    return (threads == 1 or len(runs) > threads) and most_bytes <= MAX_BYTES // 2 and most_packets < MAX_FRAMES


def _key_packets(index: PacketIndex, frames: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " M"]:
    """The packet of the last key frame that is not shown after each frame; 0 if there is none."""
    first = [0] if not len(index.key_frames) or index.key_frames[0] > 0 else []
    keys = np.concatenate([np.array(first, np.int64), index.key_packets])
    shown = np.concatenate([np.array(first, np.int64), index.key_frames])
    return keys[np.searchsorted(shown, frames, side="right") - 1]


def _packets_before(index: PacketIndex, frame: int | np.integer) -> int:
    """The packet of the second key frame before a frame."""
    key = int(np.searchsorted(index.key_frames, frame, side="right")) - 2
    return int(index.key_packets[key]) if key >= 0 else 0


def _read_runs(
    path: Path, index: PacketIndex, runs: Sequence[PacketRun], convert: Convert, threads: int, losses: Losses
) -> Generator[np.ndarray, None, None]:
    """Yield converted frames in order; end early at a run that gives none if no frame came before it."""
    waiting = deque[tuple[_RunPackets, Future]]()
    held, frames, previous = 0, 0, None
    with open_container(path) as container:
        (stream,) = video_streams(path, container, index.stream)
        template = stream.codec_context

        def work(part: _RunPackets) -> tuple[list[np.ndarray] | None, Losses]:
            # A decoder of its own: where data are damaged, one that is used again fills in what it holds of other runs.
            lost, decoder = Losses(), _decoder(template)
            made = _decode_run(decoder, part, index, convert)
            return made or _decode_run_carefully(decoder, part, index, convert, lost), lost

        def first() -> list[np.ndarray] | None:
            nonlocal held, frames
            part, result = waiting.popleft()
            held, frames = held - part.bytes, frames - len(part.run.frames)
            made, lost = result.result()
            losses.add(lost)
            if made is None and previous is not None:
                losses.replaced += len(part.run.frames)
                return [previous] * len(part.run.frames)
            return made

        pool = ThreadPoolExecutor(threads, "vxl2-decode")
        try:
            for part in _packets_of_runs(container, stream, runs):
                # Frames are handed on as soon as they are there, and before too much is held.
                while waiting and (
                    len(waiting) >= 2 * threads
                    or held + part.bytes > MAX_BYTES
                    or frames + len(part.run.frames) > MAX_FRAMES
                    or waiting[0][1].done()
                ):
                    if (made := first()) is None:
                        return
                    yield from made
                    previous = made[-1]
                waiting.append((part, pool.submit(work, part)))
                held, frames = held + part.bytes, frames + len(part.run.frames)
                del part
            while waiting:
                if (made := first()) is None:
                    return
                yield from made
                previous = made[-1]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _RunPackets(NamedTuple):
    """The packets of a run, and those before it since the second key frame before it."""

    run: PacketRun
    before: list[av.Packet]
    packets: list[av.Packet]

    @property
    def bytes(self) -> int:
        return sum(packet.size for packet in self.packets) + sum(packet.size for packet in self.before)


def _packets_of_runs(
    container: av.container.InputContainer, stream: av.VideoStream, runs: Sequence[PacketRun]
) -> Iterator[_RunPackets]:
    """Each run with its packets, whose timestamps become their numbers: the decoder hands them on to the frames."""
    started: deque[_RunPackets] = deque()
    recent: deque[list[av.Packet]] = deque([[]], maxlen=3)  # since the last key frames
    ahead = iter(runs)
    coming = next(ahead, None)
    for number, packet in enumerate(packets_of(container, stream)):
        if packet is not None:
            packet.pts = number
            if packet.is_keyframe:
                recent.append([])
            while coming is not None and coming.start <= number:
                started.append(_RunPackets(coming, [one for part in recent for one in part], []))
                coming = next(ahead, None)
            recent[-1].append(packet)
            for run, _, packets in started:
                if number <= run.stop:
                    packets.append(packet)
        while started and (packet is None or started[0].run.stop <= number):
            yield started.popleft()
        if not started and coming is None:
            return


def _decoder(template: av.VideoCodecContext) -> av.VideoCodecContext:
    """A decoder for the same stream that runs in one thread."""
    decoder = av.CodecContext.create(template.name, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.extradata = template.extradata
    for name in ("codec_tag", "color_range", "color_primaries", "color_trc", "colorspace"):
        setattr(decoder, name, getattr(template, name))
    decoder.thread_count = 1
    return decoder


def _decode_run(
    decoder: av.VideoCodecContext, part: _RunPackets, index: PacketIndex, convert: Convert
) -> list[np.ndarray] | None:
    """The converted frames of a run, in order; None if one is missing or damaged."""
    wanted = part.run.frames
    skips, made = decoder.name in _SKIPPING_DECODERS and not index.damaged, {}
    for packet in (*part.packets, None):
        if skips:
            needed = packet is None or packet.pts in wanted
            decoder.skip_frame = "DEFAULT" if needed else "NONREF"
        for frame in decode(decoder, packet):
            if (at := wanted.get(frame.pts)) is not None and not frame.is_corrupt:
                made[at] = convert(_to_rgb(frame, index.rotation))
    decoder.flush_buffers()
    return [made[at] for at in sorted(made)] if len(made) == len(wanted) else None


def _decode_run_carefully(
    decoder: av.VideoCodecContext, part: _RunPackets, index: PacketIndex, convert: Convert, losses: Losses
) -> list[np.ndarray] | None:
    """The converted frames of a run, damaged ones too, decoded with the packets before it; for one that is missing, the one
    shown before it. None if nothing can be decoded."""
    assert index.packets is not None
    decoder.skip_frame = "DEFAULT"
    numbers = {int(index.packets[at]): at for at in _frames_of([*part.before, *part.packets], index)}
    wanted = sorted(numbers[int(packet)] for packet in part.run.frames if packet is not None)
    shown: dict[int, tuple[int, av.VideoFrame]] = {}
    earliest: tuple[int, av.VideoFrame] | None = None
    for packet in (*part.before, *part.packets, None):
        for frame in decode(decoder, packet):
            if frame.pts is None or (number := numbers.get(frame.pts)) is None:
                continue
            if earliest is None or number < earliest[0]:
                earliest = number, frame
            for one in wanted:
                if number <= one and (one not in shown or shown[one][0] < number):
                    shown[one] = number, frame
    decoder.flush_buffers()
    if earliest is None:
        return None
    made: list[np.ndarray] = []
    last: tuple[int, np.ndarray] | None = None
    for one in wanted:
        number, frame = shown.get(one, earliest)
        losses.replaced += number != one
        losses.concealed += number == one and frame.is_corrupt
        if last is None or last[0] != number:
            last = number, convert(_to_rgb(frame, index.rotation))
        made.append(last[1])
    return made


def _frames_of(packets: Sequence[av.Packet], index: PacketIndex) -> Int64[np.ndarray, " n"]:
    """The frames that consecutive packets hold."""
    assert index.packets is not None
    first, last = packets[0].pts, packets[-1].pts
    return np.flatnonzero((index.packets >= first) & (index.packets <= last))


def _read_through(
    path: Path, index: PacketIndex, frames: Int64[np.ndarray, " M"], threads: int, device: str | None = None
) -> Generator[av.VideoFrame, None, None]:
    """Yield the frames with one decoder of several threads, or of a device, which goes on from a key frame where that saves packets.

    Ends early at a frame that does not appear.
    """
    assert index.packets is not None
    starts = _key_packets(index, frames)
    wanted: dict[int | None, int] = {int(packet): at for at, packet in enumerate(index.packets[frames])}
    with open_container(path, device) as container:
        (stream,) = video_streams(path, container, index.stream)
        decoder, done, resumed = stream.codec_context, 0, 0
        decoder.thread_count = threads
        skips = device is None and decoder.name in _SKIPPING_DECODERS
        for number, packet in enumerate(packets_of(container, stream)):
            if packet is not None:
                if number >= resumed and starts[done] > number:
                    decoder.flush_buffers()
                    resumed = int(starts[done])
                if number < resumed:
                    continue
                packet.pts = number
            if skips:
                decoder.skip_frame = "DEFAULT" if packet is None or number in wanted else "NONREF"
            for frame in decode(decoder, packet):
                at = wanted.get(frame.pts)
                if at is None or frame.is_corrupt:
                    continue
                if at != done:
                    return
                yield frame
                done += 1
                if done == len(frames):
                    return


def _read_carefully(
    path: Path, index: PacketIndex, frames: Int64[np.ndarray, " M"], start: int, threads: int, losses: Losses
) -> Generator[av.VideoFrame, None, None]:
    """Decode every packet from `start` on, take damaged frames too, and repeat the frame before one that is missing.

    With several threads, end early at a damaged frame.
    """
    stored = () if index.packets is None else index.packets
    numbers: dict[int | None, int] = {int(packet): frame for frame, packet in enumerate(stored)}
    with open_container(path) as container:
        (stream,) = video_streams(path, container, index.stream)
        stream.codec_context.thread_count = threads
        done, decoded = 0, 0
        previous: av.VideoFrame | None = None
        for number, packet in enumerate(packets_of(container, stream)):
            if packet is not None:
                if number < start:
                    continue
                packet.pts = number
            for frame in decode(stream, packet):
                at = decoded if index.packets is None else numbers.get(frame.pts)
                decoded += 1
                if threads > 1 and frame.is_corrupt:
                    return
                if at is None:
                    continue
                while done < len(frames) and frames[done] <= at:
                    found = frames[done] == at
                    losses.concealed += bool(found and frame.is_corrupt)
                    losses.replaced += not found
                    yield frame if found else previous or frame
                    done += 1
                if done == len(frames):
                    return
                previous = frame
        if previous is None:
            raise VideoError(f"{path}: no frame of it can be decoded; give another copy of the video")
        for _ in range(done, len(frames)):
            losses.replaced += 1
            yield previous


def _converted(
    frames: Generator[av.VideoFrame, None, None], convert: Convert, rotation: int, threads: int
) -> Generator[np.ndarray, None, None]:
    """Convert frames in several threads; in order. A frame that is repeated is converted once."""
    with closing(frames):
        yield from map_ahead(lambda frame: convert(_to_rgb(frame, rotation)), frames, threads)


def map_ahead(
    function: Callable[[Any], Any], items: Iterable[Any], threads: int, ahead: int = 2
) -> Generator[Any, None, None]:
    """`map(function, items)` in threads, up to `ahead` items per thread before the consumer; the same item twice in a row is
    computed once."""
    if threads == 1:
        yield from map(function, items)
        return
    waiting, previous = deque[Future](), None
    with ThreadPoolExecutor(threads, "vxl2-convert") as pool:
        try:
            for item in items:
                if previous is None or previous[0] is not item:
                    previous = item, pool.submit(function, item)
                waiting.append(previous[1])
                while len(waiting) > ahead * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _to_rgb(frame: av.VideoFrame, rotation: int) -> RGBFrame:
    rgb = frame.to_ndarray(format="rgb24", threads=1)
    # Phones store frames as the sensor sees them, with the rotation in degrees counter-clockwise. A decoder of a run does
    # not know the container's.
    return np.rot90(rgb, round((frame.rotation or rotation) / 90) % 4)
