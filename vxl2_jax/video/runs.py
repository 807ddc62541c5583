"""Runs: the packets from a key frame to the last wanted frame that depends on it, decoded several at a time.

One thread reads packets. Workers with a decoder each decode a run, convert its wanted frames and return them; frames come
back in order. A run that does not give all its frames is decoded again, with the packets since two key frames before it.

Symbols: M frames to read.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Int64

from vxl2_jax.video.container import RGBFrame, decode, open_container, packets_of, to_rgb, video_streams
from vxl2_jax.video.index import PacketIndex

Convert = Callable[[RGBFrame], np.ndarray]
MAX_BYTES = 256 * 2**20
"""Of the packets of all runs that are decoded at the same time, or waited for; a run is decoded even if it has more."""
MAX_FRAMES = 1024
"""Converted frames of these runs: 450 MB of 384 × 384 pixels."""
SKIPPING_DECODERS = frozenset({"h264", "hevc"})
"""Decoders that can skip non-reference frames packet by packet."""
_DECODERS = SKIPPING_DECODERS | {"vp8", "vp9", "av1", "libdav1d", "mpeg1video", "mpeg2video", "mpeg4"}
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


def plan_runs(index: PacketIndex, frames: Int64[np.ndarray, " M"]) -> list[PacketRun]:
    """The runs that hold the frames, in order. Runs may share packets: pictures that are stored after a key frame but shown
    before it belong to the run before."""
    assert index.packets is not None
    starts, packets = key_packets(index, frames), index.packets[frames]
    edges = [0, *(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(frames)]
    return [
        PacketRun(
            int(min(starts[begin], packets[begin:end].min())),
            int(packets[begin:end].max()),
            {int(packet): at for at, packet in enumerate(packets[begin:end], begin)},
        )
        for begin, end in pairwise(edges)
    ]


def suits(runs: Sequence[PacketRun], index: PacketIndex, decoder: str, threads: int) -> bool:
    """Whether runs are many and short enough to be decoded side by side, by a decoder that gains by it."""
    if decoder not in _DECODERS:
        return False
    total = np.concatenate([[0], np.cumsum(index.sizes)])
    most_bytes = max(int(total[run.stop + 1] - total[run.start]) for run in runs)
    most_packets = max(run.stop - run.start for run in runs)
    return (threads == 1 or len(runs) > threads) and most_bytes <= MAX_BYTES // 2 and most_packets < MAX_FRAMES


def key_packets(index: PacketIndex, frames: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " M"]:
    """The packet of the last key frame that is not shown after each frame; 0 if there is none."""
    first = [0] if not len(index.key_frames) or index.key_frames[0] > 0 else []
    keys = np.concatenate([np.array(first, np.int64), index.key_packets])
    shown = np.concatenate([np.array(first, np.int64), index.key_frames])
    return keys[np.searchsorted(shown, frames, side="right") - 1]


def read_runs(
    path: Path, index: PacketIndex, runs: Sequence[PacketRun], convert: Convert, threads: int, losses: Losses
) -> Generator[np.ndarray, None, None]:
    """Yield converted frames in order; end early at a run that gives none if no frame came before it."""
    waiting = deque[tuple[_RunPackets, Future]]()
    frames, previous = 0, None
    bytes_before = np.concatenate([[0], np.cumsum(index.sizes)])

    def held(newest: _RunPackets) -> int:
        """Bytes of the packets of all runs: those of neighbours overlap, and those of distant ones leave gaps."""
        parts = [part for part, _ in waiting] + [newest]
        each = sum(int(bytes_before[part.run.stop + 1] - bytes_before[part.first]) for part in parts)
        return min(each, int(bytes_before[newest.run.stop + 1] - bytes_before[parts[0].first]))

    with open_container(path) as container:
        (stream,) = video_streams(path, container, index.stream)
        template = stream.codec_context

        def work(part: _RunPackets) -> tuple[list[np.ndarray] | None, Losses]:
            # A decoder of its own: where data are damaged, one that is used again fills in what it holds of other runs.
            lost, decoder = Losses(), _decoder(template)
            made = _decode_run(decoder, part, index, convert)
            return made or _decode_run_carefully(decoder, part, index, convert, lost), lost

        def first() -> list[np.ndarray] | None:
            nonlocal frames
            part, result = waiting.popleft()
            frames -= len(part.run.frames)
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
                    or held(part) > MAX_BYTES
                    or frames + len(part.run.frames) > MAX_FRAMES
                    or waiting[0][1].done()
                ):
                    if (made := first()) is None:
                        return
                    yield from made
                    previous = made[-1]
                waiting.append((part, pool.submit(work, part)))
                frames += len(part.run.frames)
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
    def first(self) -> int:
        """The number of the first of all these packets, which are consecutive."""
        number = self.before[0].pts if self.before else None
        return self.run.start if number is None else number


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
    skips, made = decoder.name in SKIPPING_DECODERS and not index.damaged, {}
    for packet in (*part.packets, None):
        if skips:
            needed = packet is None or packet.pts in wanted
            decoder.skip_frame = "DEFAULT" if needed else "NONREF"
        for frame in decode(decoder, packet):
            if (at := wanted.get(frame.pts)) is not None and not frame.is_corrupt:
                made[at] = convert(to_rgb(frame, index.rotation))
    decoder.flush_buffers()
    return [made[at] for at in sorted(made)] if len(made) == len(wanted) else None


def _decode_run_carefully(
    decoder: av.VideoCodecContext, part: _RunPackets, index: PacketIndex, convert: Convert, losses: Losses
) -> list[np.ndarray] | None:
    """The converted frames of a run, damaged ones too, decoded with the packets before it; for one that is missing, the one
    shown before it. None if nothing can be decoded."""
    assert index.packets is not None
    decoder.skip_frame = "DEFAULT"
    inside = np.flatnonzero((index.packets >= part.first) & (index.packets <= part.run.stop)).tolist()
    numbers = {int(index.packets[at]): at for at in inside}
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
            last = number, convert(to_rgb(frame, index.rotation))
        made.append(last[1])
    return made
