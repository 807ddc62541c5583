"""Decodes the chosen frames of a video in one of three ways, with the same pixels: in runs, each from a key frame and several
at a time; straight through with one decoder; or carefully, without skipping anything, where something is damaged.

M is the number of frames to read.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import av
import numpy as np
from av.codec.hwaccel import hwdevices_available
from jaxtyping import Int64

from vxl2_jax.errors import VideoError
from vxl2_jax.video.ahead import map_ahead
from vxl2_jax.video.container import NoHardwareError, decode, open_container, packets_of, to_rgb, video_streams
from vxl2_jax.video.index import PacketIndex
from vxl2_jax.video.runs import SKIPPING_DECODERS, Convert, Losses, key_packets, plan_runs, read_runs, suits

_DEVICES = ("cuda", "videotoolbox", "vaapi", "qsv", "d3d11va")


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
    skip = skip and index.packets is not None and not index.changes
    if hardware and (index.packets is None or index.changes):
        hardware, losses.no_hardware = False, "the film must be decoded from its first packet on"
    if hardware:
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
    if skip and len(frames):
        runs = plan_runs(index, frames)
        with open_container(path) as container:
            (stream,) = video_streams(path, container, index.stream)
            side_by_side = suits(runs, index, stream.codec_context.name, threads)
        attempt = read_runs(path, index, runs, convert, threads, losses) if side_by_side else None
        if attempt is None:
            attempt = _converted(_read_through(path, index, frames, threads), convert, index.rotation, threads)
        with closing(attempt):
            for one in attempt:
                done += 1
                yield one
        if done == len(frames):
            return
    start = 0
    if skip:
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


def _packets_before(index: PacketIndex, frame: int | np.integer) -> int:
    """The packet of the second key frame before a frame."""
    key = int(np.searchsorted(index.key_frames, frame, side="right")) - 2
    return int(index.key_packets[key]) if key >= 0 else 0


def _read_through(
    path: Path, index: PacketIndex, frames: Int64[np.ndarray, " M"], threads: int, device: str | None = None
) -> Generator[av.VideoFrame, None, None]:
    """Yield the frames with one decoder of several threads, or of a device, which goes on from a key frame where that saves packets.

    Ends early at a frame that does not appear.
    """
    assert index.packets is not None
    starts = key_packets(index, frames)
    wanted: dict[int | None, int] = {int(packet): at for at, packet in enumerate(index.packets[frames])}
    with open_container(path, device) as container:
        (stream,) = video_streams(path, container, index.stream)
        decoder, done, resumed = stream.codec_context, 0, 0
        decoder.thread_count = threads
        skips = device is None and decoder.name in SKIPPING_DECODERS
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
        yield from map_ahead(lambda frame: convert(to_rgb(frame, rotation)), frames, threads)
