"""Which frames of a video are watched, and the seconds they are stamped with.

Symbols: N frames in the video, F frames chosen, r the native rate in frames per second.
"""

import math

import numpy as np

from vxl2_jax.errors import VideoError


def sample_indices(
    total_frames: int,
    native_fps: float,
    *,
    fps: float = 1.0,
    max_frames: int | None = None,
    max_fps: float | None = 4.0,
    multiple_of_4: bool = False,
) -> np.ndarray:
    """The frames that the original's loader picks from a video of constant rate.

    Every ``round(r / fps)``-th frame is taken. A video too short to fill `max_frames` at `fps` is
    taken at a higher rate, up to `max_fps`; one too long is thinned evenly to `max_frames`.
    Where the original fails (a step of 0, fewer than 4 frames) the step is at least 1 and what there
    is, is kept.

    Args:
      total_frames: N, at least 1.
      native_fps: r > 0, frames per second.
      fps: the wanted rate, frames per second.
      max_frames: at most this many frames; None sets no limit and never raises the rate.
      max_fps: the highest rate for short videos; None never raises the rate.
      multiple_of_4: drop the last F mod 4 frames (unless that would leave none), as the original's
        evaluation without chunks does; its other evaluations keep them.

    Returns:
      int64 (F,), strictly increasing, from 0 up to at most N - 1; F >= 1.

    Raises:
      VideoError: `fps` or `max_fps` is not a positive number, or `max_frames` is below 1.
      ValueError: `total_frames` is below 1, or `native_fps` is not a positive number.
    """
    check_options(fps=fps, max_frames=max_frames, max_fps=max_fps)
    if total_frames < 1:
        raise ValueError(f"total_frames must be at least 1, not {total_frames}")
    if not _positive(native_fps):
        raise ValueError(f"native_fps must be a positive number, not {native_fps}")
    indices = np.arange(0, total_frames, _step(native_fps, fps), dtype=np.int64)
    if max_frames is not None:
        if max_fps is not None:
            higher = min(max_frames // len(indices), max_fps)
            if higher > fps:
                indices = np.arange(0, total_frames, _step(native_fps, higher), dtype=np.int64)
        if len(indices) > max_frames:
            indices = np.linspace(0, total_frames - 1, max_frames).astype(np.int64)
    if multiple_of_4 and len(indices) >= 4:
        indices = indices[: len(indices) // 4 * 4]
    return indices


def frame_seconds(indices: np.ndarray, native_fps: float) -> np.ndarray:
    """The original's timestamps: index / rate, rounded to one decimal.

    Args:
      indices: int (F,), frame numbers.
      native_fps: frames per second, > 0.

    Returns:
      float64 (F,), seconds.
    """
    return _one_decimal([int(i) / float(native_fps) for i in indices])


def sample_times(
    pts_seconds: np.ndarray,
    *,
    fps: float = 1.0,
    max_frames: int | None = None,
    max_fps: float | None = 4.0,
    multiple_of_4: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The same choice for a video of variable rate, made on the clock instead of the frame count.

    The rule of `sample_indices` at the average rate r = (N - 1) / (last - first) gives instants
    index / r; each instant takes the frame that is on screen then (the last one with pts <= instant),
    stamped with that frame's own time since the first. A frame that stays on screen over several
    instants is repeated. For evenly spaced times this is `sample_indices`.

    Args:
      pts_seconds: float64 (N,), N >= 1, display times in seconds, non-decreasing; any origin.
      fps, max_frames, max_fps, multiple_of_4: as in `sample_indices`.

    Returns:
      indices: int64 (F,), non-decreasing. seconds: float64 (F,), rounded to one decimal.

    Raises:
      VideoError: as `sample_indices`.
      ValueError: no times, or times that decrease.
    """
    times = np.asarray(pts_seconds, dtype=np.float64)
    if times.ndim != 1 or len(times) == 0:
        raise ValueError("pts_seconds must hold one time per frame, at least one")
    times = times - times[0]
    if np.any(np.diff(times) < 0):
        raise ValueError("pts_seconds must not decrease")
    options = {"fps": fps, "max_frames": max_frames, "max_fps": max_fps, "multiple_of_4": multiple_of_4}
    check_options(fps=fps, max_frames=max_frames, max_fps=max_fps)
    if times[-1] == 0.0:
        return np.zeros(1, np.int64), np.zeros(1)
    rate = (len(times) - 1) / float(times[-1])
    instants = sample_indices(len(times), rate, **options) / rate
    # Container clocks tick in fractions that floats cannot hold: a frame due exactly now counts as shown.
    tolerance = 1e-6 * max(1.0, float(times[-1]))
    indices = np.searchsorted(times, instants + tolerance, side="right") - 1
    return indices.astype(np.int64), _one_decimal(times[indices])


def check_options(*, fps: float, max_frames: int | None, max_fps: float | None) -> None:
    """Raises VideoError if a sampling option makes no sense."""
    if not _positive(fps):
        raise VideoError(f"fps={fps}: give a positive number of frames per second, such as fps=1")
    if max_fps is not None and not _positive(max_fps):
        raise VideoError(f"max_fps={max_fps}: give a positive number of frames per second, such as max_fps=4")
    if max_frames is not None and max_frames < 1:
        raise VideoError(f"max_frames={max_frames}: give at least 1, or None for no limit")


def _step(native_fps: float, fps: float) -> int:
    # Python's own round (ties to even), as in the original's loader; numpy integers would not change it.
    return max(1, round(float(native_fps) / float(fps)))


def _one_decimal(seconds) -> np.ndarray:
    # Python rounds the exact binary value; np.round scales first and differs where x.x5 is not exact.
    return np.array([round(float(s), 1) for s in seconds], dtype=np.float64)


def _positive(number: float) -> bool:
    return math.isfinite(number) and number > 0
