"""Opening a video, an image or a folder of images, and reading its chosen frames in batches.

Symbols: N frames in the file, F frames chosen, S the side of the square they are resized to.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from vxl2_jax.cpu import cpu_cores
from vxl2_jax.errors import VideoError
from vxl2_jax.video.ahead import map_ahead
from vxl2_jax.video.decode import read_frames
from vxl2_jax.video.hashing import check_readable
from vxl2_jax.video.images import (
    animation_times,
    folder_images,
    is_image,
    is_motion_jpeg,
    read_animation,
    read_image,
)
from vxl2_jax.video.index import PacketIndex, read_index
from vxl2_jax.video.preprocess import resize_frame, resize_padded
from vxl2_jax.video.runs import Losses
from vxl2_jax.video.sampling import (
    check_options,
    frame_seconds,
    is_slower,
    round_to_tenths,
    sample_indices,
    sample_timestamps,
)

MAX_SECONDS = 100_000_000
"""Of a video: three years."""
MAX_THREADS = 16
_TOLERANCE_S = 0.1
"""Timestamps are rounded to tenths: a film whose clock is off by less is sampled by frame number, as in the original."""
ALL, KEY_FRAMES = "all", "keyframes"
FRAMES_FROM = (ALL, KEY_FRAMES)
"""The frames of a file that are candidates for sampling: all, or the key frames, which are 5 to 20 times as fast to read."""
SOFTWARE, HARDWARE = "software", "hardware"
DECODERS = (SOFTWARE, HARDWARE)
_Frames = Generator[np.ndarray, None, None]
_Read = Callable[[Int64[np.ndarray, " M"], Losses], _Frames]


@dataclasses.dataclass(frozen=True)
class VideoSource:
    """The chosen frames of a video. Their pixels are read on demand.

    path: the file or folder.
    kind: "video", "image" or "folder".
    native_fps: frames per second (the average of a variable rate); 1 for an image.
    duration_s: seconds; 0 for an image.
    total_frames: N, as counted, whatever the file's header claims.
    variable_rate: frames were chosen by time, not by frame number.
    damaged: parts of the file cannot be decoded.
    size: S, pixels.
    indices: frame numbers, non-decreasing (a frame that is on screen for long may be chosen several times).
    seconds: when each frame is on screen, in seconds since the first frame, rounded to one decimal.
    generated: the file says that `experiments.synthetic` made it.
    """

    path: Path
    kind: Literal["video", "image", "folder"]
    native_fps: float
    duration_s: float
    total_frames: int
    variable_rate: bool
    damaged: bool
    size: int
    indices: Int64[np.ndarray, " F"]
    seconds: Float64[np.ndarray, " F"]
    # Reads and resizes the frames with these numbers, which strictly increase, and counts what could not be read.
    _read: _Read = dataclasses.field(repr=False)
    generated: bool = False
    _notes: tuple[str, ...] = ()
    _losses: Losses = dataclasses.field(default_factory=Losses, repr=False)

    @property
    def distinct_frames(self) -> int:
        """Frames of the video among the F: one that stays on screen for long may be chosen several times."""
        return len(np.unique(self.indices))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing, damaged or unusual in the video, a line each. Complete once all batches have been read."""
        notes, losses = list(self._notes), self._losses
        if losses.no_hardware:
            notes.append(f"decoded in software: {losses.no_hardware}")
        if losses.replaced:
            notes.append(
                f"chosen frames that could not be read, so that another near them was taken: {losses.replaced:,}"
            )
        if losses.concealed:
            notes.append(f"chosen frames that are damaged, and were completed by the decoder: {losses.concealed:,}")
        return tuple(note[:500] for note in notes)

    def batches(self, frames_per_batch: int, first: int = 0) -> Iterator[UInt8[np.ndarray, "n S S 3"]]:
        """Decode and resize the frames, in order. Every call starts from the beginning.

        Args:
          frames_per_batch: n, at least 1.
          first: how many of the F frames to skip at the beginning.

        Yields:
          Batches of RGB frames, F - first frames in total; the last batch may be smaller.

        Raises:
          VideoError: `frames_per_batch` is below 1, or the file has changed and cannot be read any more.
        """
        if frames_per_batch < 1:
            raise VideoError(f"frames_per_batch={frames_per_batch}: give at least 1")
        return self._batches(frames_per_batch, first)

    def _batches(self, frames_per_batch: int, first: int) -> Iterator[UInt8[np.ndarray, "n S S 3"]]:
        frames, repeats = np.unique(self.indices[first:], return_counts=True)
        if not len(frames):
            return
        self._losses.clear()
        batch = []
        with contextlib.closing(self._read(frames, self._losses)) as resized:
            for frame, count in zip(resized, repeats, strict=True):
                for _ in range(count):
                    batch.append(frame)
                    if len(batch) == frames_per_batch:
                        yield np.stack(batch)
                        batch = []
        if batch:
            yield np.stack(batch)


def open_video(
    path: str | Path,
    *,
    size: int,
    fps: float = 1.0,
    max_frames: int | None = None,
    max_fps: float | None = 4.0,
    multiple_of_4: bool = False,
    frames_from: str = ALL,
    stream: int | None = None,
    read_threads: int | None = None,
    decoder: str = SOFTWARE,
) -> VideoSource:
    """Open a video and choose its frames. Reads all packets but decodes almost nothing.

    A video with a constant rate is sampled by frame number, as in the original's loader; one with a variable rate, or fewer
    than half as many frames as asked for, by time: see `sampling`. Timestamps that are wrong are repaired: see `timeline`.
    A file whose packets do not say what can be decoded is decoded once here. An image is a video with one frame at 0.0 s,
    padded to a square with grey 127. A folder of images is a video with one image every 1 / fps seconds (`fps` sets their
    timestamps and drops none), sorted by name with numbers in numeric order.

    Args:
      path: a video, an image or animation, or a folder of images.
      size: S, the side in pixels to which frames are resized.
      fps, max_frames, max_fps, multiple_of_4: as in `sample_indices`.
      frames_from: "all", or "keyframes": each chosen time shows the last key frame before it, and says when that was.
      stream: number of the video's stream in the file; None: the longest, and of these the largest. Not for images.
      decoder: "software", or "hardware": on a device that FFmpeg knows, such as an NVIDIA card, and in software if it cannot.
        Images are decoded in software.
      read_threads: threads that decode; None: one per CPU core, at most 16.

    Returns:
      A VideoSource with F >= 1 frames.

    Raises:
      VideoError: the video cannot be read, or an option is invalid.
    """
    check_options(fps=fps, max_frames=max_frames, max_fps=max_fps)
    if size < 1:
        raise VideoError(f"size={size}: give the side of the resized frames in pixels, such as 384")
    for name, value, allowed in (("frames_from", frames_from, FRAMES_FROM), ("decoder", decoder, DECODERS)):
        if value not in allowed:
            raise VideoError(f"{name}={value!r:.40}: give {' or '.join(allowed)}")
    if read_threads is not None and read_threads < 1:
        raise VideoError(f"read_threads={read_threads}: give at least 1, or None for one per CPU core")
    path, threads = Path(path), read_threads or default_threads()
    options = {"fps": fps, "max_frames": max_frames, "max_fps": max_fps, "multiple_of_4": multiple_of_4}
    with check_readable(path):
        is_folder, is_still = path.is_dir(), path.is_file() and is_image(path) and not is_motion_jpeg(path)
        if stream is not None and (is_folder or is_still):
            raise VideoError(f"{path}: has no streams; leave out stream={stream}")
        if is_folder:
            return _open_folder(path, size, options, threads)
        if is_still:
            if (animation := animation_times(path)) is not None:
                return _open_animation(path, *animation, size, options)
            return _open_image(path, size)
        reading = {"threads": threads, "hardware": decoder == HARDWARE}
        return _open_container(path, size, options, frames_from, stream, reading)


def default_threads() -> int:
    """One decoder per CPU core that this process may use, at most MAX_THREADS."""
    return min(MAX_THREADS, cpu_cores())


def _open_container(
    path: Path, size: int, options: dict, frames_from: str, stream: int | None, reading: dict
) -> VideoSource:
    index = read_index(path, stream)
    times, total, rate = index.times, len(index.times), _constant_rate(index)
    seconds = total / rate if rate else index.end_s
    if max(seconds, index.end_s) > MAX_SECONDS:
        raise VideoError(
            f"{path}: by its timestamps it lasts {seconds:,.0f} s, more than {MAX_SECONDS:,}; encode it again with the "
            "right rate"
        )
    indices, chosen_s, by_time = _choose(times, seconds, rate, options)
    notes = index.notes
    shown = () if index.packets is None else index.key_frames[np.isin(index.key_packets, index.packets)]
    if frames_from == KEY_FRAMES and not len(shown):
        notes = (*notes, "the file does not say which frames are key frames: all frames are chosen from")
    elif frames_from == KEY_FRAMES:
        indices = shown[np.maximum(np.searchsorted(shown, indices, side="right") - 1, 0)]
        chosen_s = frame_seconds(indices, rate) if rate else round_to_tenths(times[indices])

    def read(frames: Int64[np.ndarray, " M"], losses: Losses) -> _Frames:
        resize = functools.partial(resize_frame, size=size)
        return read_frames(path, index, frames, resize, losses=losses, **reading)

    native = rate or total / seconds
    return VideoSource(
        path,
        "video",
        native,
        seconds,
        total,
        by_time,
        index.damaged,
        size,
        indices,
        chosen_s,
        read,
        index.generated,
        notes,
    )


def _choose(
    times: Float64[np.ndarray, " N"], end: float, rate: float | None, options: dict
) -> tuple[Int64[np.ndarray, " F"], Float64[np.ndarray, " F"], bool]:
    """(indices, seconds, whether they were chosen by time)."""
    if rate is None or is_slower(rate, options["fps"]):
        return *sample_timestamps(times, end, **options), True
    indices = sample_indices(len(times), rate, **options)
    return indices, frame_seconds(indices, rate), False


def _open_animation(path: Path, times: list[float], end: float, size: int, options: dict) -> VideoSource:
    rate = len(times) / end if _fits(np.array(times), len(times) / end, 0.5) else None
    indices, seconds, by_time = _choose(np.array(times), end, rate, options)

    def read(frames: Int64[np.ndarray, " M"], _: Losses) -> _Frames:
        return (resize_frame(rgb, size) for rgb in read_animation(path, frames.tolist()))

    native = rate or len(times) / end
    return VideoSource(path, "video", native, end, len(times), by_time, False, size, indices, seconds, read)


def _open_image(path: Path, size: int) -> VideoSource:
    read_image(path)  # raises now if the image is damaged

    def read(*_: Any) -> _Frames:
        return (resize_padded(read_image(path), size) for _ in range(1))

    return VideoSource(path, "image", 1.0, 0.0, 1, False, False, size, np.zeros(1, np.int64), np.zeros(1), read)


def _open_folder(path: Path, size: int, options: dict, threads: int) -> VideoSource:
    images = folder_images(path)
    if invalid := next((image for image in images if not is_image(image)), None):
        raise VideoError(f"{invalid}: not an image, despite its name; remove it from the folder")
    fps, total = float(options["fps"]), len(images)
    indices = sample_indices(total, fps, **options)

    def read(frames: Int64[np.ndarray, " M"], _: Losses) -> _Frames:
        chosen = (images[i] for i in frames)
        return map_ahead(lambda image: resize_frame(read_image(image), size), chosen, threads)

    return VideoSource(
        path, "folder", fps, total / fps, total, False, False, size, indices, frame_seconds(indices, fps), read
    )


def _constant_rate(index: PacketIndex) -> float | None:
    """The rate of a film of constant rate. The container's own average rate is tried first: the original uses it."""
    times, rate = index.times, index.rate
    if len(times) == 1:
        return rate or 1 / index.end_s
    if times[-1] == 0:  # all frames have the same timestamp: rely on the container
        return rate or 25.0
    if rate and _fits(times, rate, max(0.5, _TOLERANCE_S * rate - 1e-6)):
        return rate
    measured = (len(times) - 1) / float(times[-1])
    return measured if _fits(times, measured, 0.5) else None


def _fits(times: Float64[np.ndarray, " N"], rate: float, frames: float) -> bool:
    """Whether every frame's time is within so many frames of number / rate."""
    return bool(np.all(np.abs(times * rate - np.arange(len(times))) <= frames))
