"""Video files with PyAV: opening one, its streams of video, its packets and their frames."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import av
import av.stream
import numpy as np
from av.codec.hwaccel import HWAccel
from jaxtyping import UInt8

from vxl2_jax.errors import VideoError, first_line

RGBFrame = UInt8[np.ndarray, "height width 3"]
# Formats of FFmpeg that name the files of a video.
_LISTS = ("hls", "concat", "dash", "imf")
# Decoders that render plain text as pictures: FFmpeg would "play" a .txt or .nfo file.
_TEXT_DECODERS = frozenset({"ansi", "bintext", "xbin", "idf"})


class NoHardwareError(Exception):
    """No hardware decoder can be used; the message says why."""


@contextlib.contextmanager
def open_container(path: Path, device: str | None = None) -> Generator[av.container.InputContainer, None, None]:
    """An open video file.

    Args:
      device: decode on this kind of device, one of FFmpeg's names.

    Raises:
      VideoError: the file is missing, FFmpeg cannot open it, or it is a list of other files.
      NoHardwareError: the device cannot decode it.
    """
    # FFmpeg raises in spite of its own fallback if there is no driver.
    hwaccel = None if device is None else HWAccel(device, allow_software_fallback=False)
    try:
        # "file:" and the whitelist: a name with a colon, or a playlist, must not open network connections. Options of the
        # container only: PyAV before 17.1 crashes where those of streams meet an MPEG program stream.
        container = av.open(f"file:{path}", container_options={"protocol_whitelist": "file"}, hwaccel=hwaccel)
    except FileNotFoundError as error:
        raise VideoError(f"{path}: no such file any more; put it back, or give another path") from error
    except (av.FFmpegError, RuntimeError, ValueError) as error:
        if device is not None:
            reason = getattr(error, "strerror", None) or first_line(error)  # without the file's name
            raise NoHardwareError(f"{device}: {reason}") from error
        raise VideoError(f"{path}: not a video that FFmpeg can read; give a video, an image or a folder") from error
    with container:
        if container.format.name in _LISTS:  # a memory would be recognised by the list, whatever the files hold
            raise VideoError(
                f"{path}: a list of other files; make one of them, with `ffmpeg -i LIST -c copy video.mkv`"
            )
        yield container


def video_streams(path: Path, container: av.container.InputContainer, number: int | None) -> list[av.VideoStream]:
    """The streams that may be the film, or the one with a number, set up for decoding with several threads.

    Raises VideoError if there are none.
    """
    of_video = list(container.streams.video)
    if number is not None and not (chosen := [one for one in of_video if one.index == number]):
        listed = ", ".join(f"{one.index} ({one.width} × {one.height})" for one in of_video) or "none"
        raise VideoError(f"{path}: stream {number} is no video; its video streams: {listed}")
    # The cover picture of a music file is stored as a video stream, and so are previews.
    pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [one for one in of_video if not one.disposition & pictures] if number is None else chosen
    if not streams:
        raise VideoError(f"{path}: holds no video stream (sound only?); give a file with moving pictures")
    known = [one for one in streams if one.codec_context is not None]
    if not known:
        raise VideoError(f"{path}: its video codec is unknown to FFmpeg; convert it, for instance to H.264")
    films = [one for one in known if one.codec_context.name not in _TEXT_DECODERS]
    if not films:
        raise VideoError(f"{path}: is text, not video; give a video, an image or a folder of images")
    for one in films:
        one.thread_type = "AUTO"
    return films


def packets_of(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet | None]:
    """The packets in the order of the index pass, then None, which flushes the decoder."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.FFmpegError:
        pass
    yield None


def decode(stream: av.VideoStream | av.VideoCodecContext, packet: av.Packet | None) -> Iterable[av.VideoFrame]:
    """The frames that the decoder returns for a packet; none for one that it cannot decode."""
    context = stream.codec_context if isinstance(stream, av.VideoStream) else stream
    try:
        return context.decode(packet)
    except (av.FFmpegError, ValueError):  # ValueError: the decoder cannot be opened
        return []


def to_rgb(frame: av.VideoFrame, rotation: int) -> RGBFrame:
    """A frame as RGB, upright.

    rotation: degrees counter-clockwise that the container states; a decoder of a run does not know them.
    """
    rgb = frame.to_ndarray(format="rgb24", threads=1)
    # Phones store frames as the sensor sees them, with the rotation in degrees counter-clockwise.
    return np.rot90(rgb, round((frame.rotation or rotation) / 90) % 4)
