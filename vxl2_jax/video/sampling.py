"""Which frames of a video are watched, and their timestamps.

Symbols: N frames in the video, F frames chosen, r the native rate in frames per second.
"""

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64, Int, Int64, Real

from vxl2_jax.errors import VideoError

MAX_FRAMES = 1_000_000
"""Chosen by time, without `max_frames`."""


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
    return round_to_tenths(int(i) / float(native_fps) for i in indices)


def sample_timestamps(
    timestamps: Real[np.ndarray, " N"],
    end: float,
    *,
    fps: float = 1.0,
    max_frames: int | None = None,
    max_fps: float | None = 4.0,
    multiple_of_4: bool = False,
) -> tuple[Int64[np.ndarray, " F"], Float64[np.ndarray, " F"]]:
    """Choose frames of a video by time instead of frame number.

    The instants 0, 1 / fps, 2 / fps, … before the end of the video each select the frame on screen then: the last one with
    timestamp <= instant. A frame on screen at several instants is repeated. `max_frames` acts as in `sample_indices`, but
    the rate is never raised above that of the frames, which is one over the median of their distances.

    Args:
      timestamps: N >= 1 display times in seconds since the first frame, non-decreasing.
      end: when the last frame ends, in seconds since the first frame.
      fps, max_frames, max_fps, multiple_of_4: as in `sample_indices`.

    Returns:
      indices: non-decreasing frame numbers; F >= 1.
      seconds: the instants, rounded to one decimal.

    Raises:
      VideoError: as `sample_indices`, or more than MAX_FRAMES frames would be chosen.
      ValueError: no timestamps, or decreasing ones.
    """
    times = np.asarray(timestamps, dtype=np.float64)
    if times.ndim != 1 or len(times) == 0:
        raise ValueError("timestamps must hold one time per frame, at least one")
    steps = np.diff(times)
    if np.any(steps < 0):
        raise ValueError("timestamps must not decrease")
    check_options(fps=fps, max_frames=max_frames, max_fps=max_fps)
    # Floats cannot hold the container's clock ticks exactly: a frame due exactly at an instant counts as shown.
    tolerance = 1e-6 * max(1.0, end)
    count = max(1, math.ceil((end - tolerance) * fps))
    if max_frames is not None and max_fps is not None and (steps > 0).any():
        raised_fps = min(max_frames // count, max_fps, 1 / float(np.median(steps[steps > 0])))
        if raised_fps > fps:
            fps, count = raised_fps, max(1, math.ceil((end - tolerance) * raised_fps))
    if max_frames is not None and count > max_frames:
        instants = np.linspace(0, (count - 1) / fps, max_frames)
    elif count > MAX_FRAMES:
        raise VideoError(f"{count:,} frames in {end:,.0f} s: give a lower fps, or max_frames")
    else:
        instants = np.arange(count) / fps
    if multiple_of_4 and len(instants) >= 4:
        instants = instants[: len(instants) // 4 * 4]
    indices = np.searchsorted(times, instants + tolerance, side="right") - 1
    return indices.astype(np.int64), round_to_tenths(instants)


def check_options(*, fps: float, max_frames: int | None, max_fps: float | None) -> None:
    """Raise VideoError if a sampling option is invalid."""
    if not _is_positive(fps):
        raise VideoError(f"fps={fps}: give a positive number of frames per second, such as fps=1")
    if max_fps is not None and not _is_positive(max_fps):
        raise VideoError(f"max_fps={max_fps}: give a positive number of frames per second, such as max_fps=4")
    if max_frames is not None and max_frames < 1:
        raise VideoError(f"max_frames={max_frames}: give at least 1, or None for no limit")


def is_slower(native_fps: float, fps: float) -> bool:
    """Whether a video has too few frames to take `fps` of them by frame number: the original fails then (a step of 0)."""
    return round(float(native_fps) / float(fps)) < 1


def _step(native_fps: float, fps: float) -> int:
    # Python's round (ties to even), as in the original's loader.
    return max(1, round(float(native_fps) / float(fps)))


def round_to_tenths(seconds: Iterable[float]) -> Float64[np.ndarray, " F"]:
    """Seconds rounded to one decimal, as Python does."""
    # Python rounds the exact binary value; np.round scales first and differs where x.x5 is not exact.
    return np.array([round(float(s), 1) for s in seconds], dtype=np.float64)


def _is_positive(number: float) -> bool:
    return bool(0 < number < math.inf)
