"""Which frames of a video are watched, and their timestamps.

Symbols: N frames in the video, F frames chosen, r the native rate in frames per second.
"""

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64, Int, Int64, Real

from vxl2_jax.errors import VideoError


def sample_indices(
    total_frames: int,
    native_fps: float,
    *,
    fps: float = 1.0,
    max_frames: int | None = None,
    max_fps: float | None = 4.0,
    multiple_of_4: bool = False,
) -> Int64[np.ndarray, " F"]:
    """Choose frames of a video with a constant rate, as the original's loader does.

    Takes every ``round(r / fps)``-th frame. If that gives fewer than `max_frames`, the rate is raised, up to `max_fps`;
    if it gives more, `max_frames` evenly spaced frames are taken. Where the original fails (a step of 0, fewer than 4
    frames), the step is at least 1 and all frames are kept.

    Args:
      total_frames: N, at least 1.
      native_fps: r > 0, frames per second.
      fps: the desired rate, frames per second.
      max_frames: maximum number of frames; None sets no limit and never raises the rate.
      max_fps: the highest rate for short videos; None never raises the rate.
      multiple_of_4: drop the last F mod 4 frames (unless none would be left), as the original's evaluation without
        chunks does; its other evaluations keep them.

    Returns:
      Strictly increasing frame numbers from 0 to at most N - 1; F >= 1.

    Raises:
      VideoError: `fps` or `max_fps` is not a positive number, or `max_frames` is below 1.
      ValueError: `total_frames` is below 1, or `native_fps` is not a positive number.
    """
    check_options(fps=fps, max_frames=max_frames, max_fps=max_fps)
    if total_frames < 1:
        raise ValueError(f"total_frames must be at least 1, not {total_frames}")
    if not _is_positive(native_fps):
        raise ValueError(f"native_fps must be a positive number, not {native_fps}")
    indices = np.arange(0, total_frames, _step(native_fps, fps), dtype=np.int64)
    if max_frames is not None:
        if max_fps is not None:
            raised_fps = min(max_frames // len(indices), max_fps)
            if raised_fps > fps:
                indices = np.arange(0, total_frames, _step(native_fps, raised_fps), dtype=np.int64)
        if len(indices) > max_frames:
            indices = np.linspace(0, total_frames - 1, max_frames).astype(np.int64)
    if multiple_of_4 and len(indices) >= 4:
        indices = indices[: len(indices) // 4 * 4]
    return indices


def frame_seconds(indices: Int[np.ndarray, " F"], native_fps: float) -> Float64[np.ndarray, " F"]:
    """The original's timestamps: index / rate in seconds, rounded to one decimal."""
    return _round_to_tenths(int(i) / float(native_fps) for i in indices)


def sample_timestamps(
    timestamps: Real[np.ndarray, " N"],
    *,
    fps: float = 1.0,
    max_frames: int | None = None,
    max_fps: float | None = 4.0,
    multiple_of_4: bool = False,
) -> tuple[Int64[np.ndarray, " F"], Float64[np.ndarray, " F"]]:
    """Choose frames of a video with a variable rate, by time instead of frame number.

    `sample_indices` at the average rate r = (N - 1) / (last - first) gives the times index / r. Each time selects the
    frame on screen then (the last one with timestamp <= time). A frame on screen at several of the times is repeated.
    For evenly spaced timestamps this equals `sample_indices`.

    Args:
      timestamps: N >= 1 display times in seconds, non-decreasing; any origin.
      fps, max_frames, max_fps, multiple_of_4: as in `sample_indices`.

    Returns:
      indices: non-decreasing frame numbers.
      seconds: the frames' own timestamps since the first frame of the video, rounded to one decimal.

    Raises:
      VideoError: as `sample_indices`.
      ValueError: no timestamps, or decreasing ones.
    """
    times = np.asarray(timestamps, dtype=np.float64)
    if times.ndim != 1 or len(times) == 0:
        raise ValueError("timestamps must hold one time per frame, at least one")
    times = times - times[0]
    if np.any(np.diff(times) < 0):
        raise ValueError("timestamps must not decrease")
    options = {"fps": fps, "max_frames": max_frames, "max_fps": max_fps, "multiple_of_4": multiple_of_4}
    check_options(fps=fps, max_frames=max_frames, max_fps=max_fps)
    if times[-1] == 0.0:
        return np.zeros(1, np.int64), np.zeros(1)
    rate = (len(times) - 1) / float(times[-1])
    sampled = sample_indices(len(times), rate, **options) / rate
    # Floats cannot hold the container's clock ticks exactly: a frame due exactly at a sampled time counts as shown.
    tolerance = 1e-6 * max(1.0, float(times[-1]))
    indices = np.searchsorted(times, sampled + tolerance, side="right") - 1
    return indices.astype(np.int64), _round_to_tenths(times[indices])


def check_options(*, fps: float, max_frames: int | None, max_fps: float | None) -> None:
    """Raise VideoError if a sampling option is invalid."""
    if not _is_positive(fps):
        raise VideoError(f"fps={fps}: give a positive number of frames per second, such as fps=1")
    if max_fps is not None and not _is_positive(max_fps):
        raise VideoError(f"max_fps={max_fps}: give a positive number of frames per second, such as max_fps=4")
    if max_frames is not None and max_frames < 1:
        raise VideoError(f"max_frames={max_frames}: give at least 1, or None for no limit")


def _step(native_fps: float, fps: float) -> int:
    # Python's round (ties to even), as in the original's loader.
    return max(1, round(float(native_fps) / float(fps)))


def _round_to_tenths(seconds: Iterable[float]) -> Float64[np.ndarray, " F"]:
    # Python rounds the exact binary value; np.round scales first and differs where x.x5 is not exact.
    return np.array([round(float(s), 1) for s in seconds], dtype=np.float64)


def _is_positive(number: float) -> bool:
    return bool(0 < number < math.inf)
