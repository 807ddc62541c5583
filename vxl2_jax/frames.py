"""The frames to watch, from a file, a folder or arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from vxl2_jax.errors import RequestError, VideoError, first_line
from vxl2_jax.video.hashing import BackgroundHash, fingerprint
from vxl2_jax.video.reader import ALL, open_video

Seconds = Sequence[float] | np.ndarray
Frames = tuple[np.ndarray, Seconds]
"""(frames uint8 [F, px, px, 3], their times in seconds [F])"""


class FrameSource(NamedTuple):
    """Frames that are sampled but not yet read.

    Attributes:
      seconds: float64 [F], the time of each frame.
      batches: (frames per batch, first frame) → arrays uint8 [n, px, px, 3].
      end_s: the second at which the last frame ends.
      name: of the file; empty if there is no file.
      hash: waits for the SHA-256 of the file, which is computed in the background; "" if there is no file.
      stop: ends the computing of the hash, if it is not wanted any more.
      fingerprint: what is known of the file at once; see `video.hashing.fingerprint`.
      reading: how frames were taken from the file, if not in the usual way.
      distinct: number of different frames; 0 if unknown.
      notes: what is missing, damaged or unusual in the video; complete once all batches have been read.
      generated: whether `experiments.synthetic` made the video, as far as the file says.
    """

    seconds: np.ndarray
    batches: Callable[[int, int], Iterator[np.ndarray]]
    end_s: float
    name: str = ""
    hash: Callable[[], str] = str
    stop: Callable[[], Any] = tuple
    fingerprint: str = ""
    reading: str = ""
    distinct: int = 0
    notes: Callable[[], tuple[str, ...]] = tuple
    generated: bool = False


def open_source(video: str | Path | Frames, size: int, sampling: Mapping[str, Any]) -> FrameSource:
    """Open a video.

    Args:
      video: a file or folder that `video.reader.open_video` reads, or (frames, seconds).
      size: px, the side of a frame in pixels.
      sampling: keywords of `open_video`; ignored for arrays.

    Raises:
      VideoError: the video cannot be read.
      RequestError: the arrays have the wrong shape, dtype or order.
    """
    if isinstance(video, (str, Path)):
        known = fingerprint(video)
        hashed = BackgroundHash(video)
        try:
            source = open_video(video, size=size, **sampling)
        except BaseException:
            hashed.stop()
            raise
        return FrameSource(
            np.asarray(source.seconds),
            source.batches,
            end_s=float(max(source.duration_s, source.seconds[-1])),
            name=source.path.name,
            hash=hashed,
            stop=hashed.stop,
            fingerprint=known,
            reading=_reading(**sampling),
            distinct=source.distinct_frames,
            notes=lambda: (*source.notes, *_changes(video, known)),
            generated=source.generated,
        )
    if not isinstance(video, (tuple, list)) or len(video) != 2:
        raise RequestError(f"a video must be a path, or (frames, seconds), not {type(video).__name__}")
    frames, seconds = check_frames(*video, size)

    def batches(count: int, first: int) -> Iterator[np.ndarray]:
        return (frames[i : i + count] for i in range(first, len(frames), count))

    return FrameSource(seconds, batches, end_of(seconds))


def _changes(video: str | Path, known: str) -> tuple[str, ...]:
    """A note if a file was changed since its fingerprint was `known`. It may have been removed: what was read stays."""
    with contextlib.suppress(VideoError):
        if fingerprint(video) != known:
            return ("the file was changed while it was watched: watch it again",)
    return ()


def _reading(frames_from: str = ALL, stream: int | None = None, **_: Any) -> str:
    return " ".join([*([] if frames_from == ALL else [frames_from]), *([] if stream is None else [f"stream {stream}"])])


def check_frames(
    frames: Any, seconds: Seconds, size: int
) -> tuple[UInt8[np.ndarray, "F px px 3"], Float[np.ndarray, " F"]]:
    """Frames and their times as arrays. Raises RequestError for a wrong shape, dtype or order."""
    try:
        frames, seconds = np.asarray(frames), np.asarray(seconds, float)
    except (TypeError, ValueError) as error:
        raise RequestError(f"frames and seconds must be arrays of numbers ({first_line(error)})") from error
    if seconds.ndim != 1:
        raise RequestError(
            f"seconds must have one axis, with the time of each frame, not the shape {list(seconds.shape)}"
        )
    if frames.dtype != np.uint8 or frames.shape != (len(seconds), size, size, 3) or not len(seconds):
        raise RequestError(
            f"frames must be uint8 [{max(len(seconds), 1)}, {size}, {size}, 3], one per timestamp, "
            f"not {frames.dtype} {list(frames.shape)}"
        )
    if not np.isfinite(seconds).all() or np.any(np.diff(seconds) < 0):
        raise RequestError("timestamps must be finite and must not decrease; sort frames and seconds by time")
    return frames, seconds


def end_of(seconds: Seconds, previous: float | None = None) -> float:
    """The second at which the last frame ends: it is shown as long as the frame before it.

    Args:
      seconds: [F], times of the frames.
      previous: time of the frame before them, if there is one.
    """
    times = list(seconds) if previous is None else [previous, *seconds]
    return float(times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0.0))
