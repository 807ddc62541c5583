"""When each frame of a video is on screen, from the timestamps of its packets.

Timestamps are often wrong: the clock of a joined recording starts again, the 33-bit clock of MPEG-TS wraps, a single packet
is a day late. Here they become what a player shows: frames in the order of one clock that never goes back.

Symbols: N packets that are shown, in the order in which they are stored (decoding order).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

JUMP_S = 10.0
"""A step in time of more than this many seconds, and of `_DEPTH` · 2 frames, is a jump. FFmpeg has the same limit."""
OUTLIER_S = 1.0
"""Up to `_LONE` packets are outliers if they lie further than this, and than `_DEPTH` · 2 frames, from those before and after."""
LONE_S = 3600.0
"""Up to `_LONE` frames at either end of a film are outliers if they lie further away than this, and than the film is long."""
_LONE = 4
_DEPTH = 17
"""More than the 16 frames that a decoder of H.264 or HEVC reorders."""
_MAX_JUMPS = 10_000
"""With more steps back, outliers are not replaced."""
_SHOWN = 3


class Timeline(NamedTuple):
    """Frames in the order in which they are shown.

    order: for each frame, its position among the N packets.
    times: seconds since the first frame, non-decreasing.
    spacing: typical seconds between two frames; 0 if there are fewer than two times.
    repaired: whether clocks or single times were wrong.
    notes: what was repaired, and long gaps, in one line each.
    """

    order: Int64[np.ndarray, " N"]
    times: Float64[np.ndarray, " N"]
    spacing: float
    repaired: bool
    notes: tuple[str, ...]


def timeline(
    seconds: Float64[np.ndarray, " N"],
    *,
    decoding_s: Float64[np.ndarray, " N"] | None = None,
    reorders: bool = False,
    jumps: bool = False,
) -> Timeline:
    """Order frames by time and repair their times.

    A time that lies far from those before and after it is replaced by one between them. Where the clock goes back, it is
    set so that the next frame follows the last one. A jump forward is closed where clocks may jump, and else is a gap in
    which a picture stays on screen.

    Args:
      seconds: the packets' display times; N >= 1, finite.
      decoding_s: their decoding times, if they are known. They never go back within a sound film.
      reorders: whether the decoder shows frames in another order than the stored one.
      jumps: whether the clock of this kind of file may jump (MPEG-TS, MPEG-PS).
    """
    depth = _DEPTH if reorders else 2
    spacing = _spacing(seconds)
    limit = max(JUMP_S, 2 * _DEPTH * spacing)
    outliers = _outliers(seconds, depth, max(OUTLIER_S, 2 * _DEPTH * spacing))
    if outliers.any():
        spacing = _spacing(seconds[~outliers])
        seconds = _replaced(seconds, outliers, depth, spacing)
        if decoding_s is not None:
            decoding_s = _replaced(decoding_s, outliers, depth, spacing)
    restarts = _restarts(seconds, depth)
    if decoding_s is not None:
        restarts |= _restarts(decoding_s, 2)  # a single wrong time is no restart
    segment = np.cumsum(restarts)
    order = np.lexsort((seconds, segment))  # stable: equal times stay in the stored order
    steps = np.diff(seconds[order])
    begins = np.diff(segment[order]) > 0
    far = (steps > limit) & ~begins
    lone = _lone(steps, far, spacing)
    closed = lone | (far if jumps else np.zeros_like(far))
    # Sums of the corrections alone: times that need none stay exact.
    moved = np.concatenate([[0.0], np.cumsum(np.where(begins | closed, spacing - steps, 0.0))])
    times = seconds[order] - seconds[order[0]] + moved
    notes = []
    if count := int(outliers.sum()) + int(lone.sum()):
        notes.append(f"{count} wrong timestamp{' was' if count == 1 else 's were'} replaced")
    if begins.any():
        notes.append(f"its clock starts again at {_listed(times[1:][begins])}: the parts follow each other")
    if (holes := closed & ~lone).any():
        notes.append(f"closed holes in its clock: {_listed(times[1:][holes], steps[holes])}")
    if (gaps := far & ~closed).any():
        notes.append(f"one picture stays on screen for long: {_listed(times[:-1][gaps], steps[gaps])}")
    return Timeline(order, times, spacing, bool(count or begins.any() or holes.any()), tuple(notes))


def _spacing(seconds: Float64[np.ndarray, " N"]) -> float:
    steps = np.diff(np.sort(seconds))
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else 0.0


def _replaced(
    seconds: Float64[np.ndarray, " N"], outliers: Bool[np.ndarray, " N"], depth: int, spacing: float
) -> Float64[np.ndarray, " N"]:
    """Times with the outliers placed evenly between those before and after them, or at a restart, after all before them."""
    good, bad = np.flatnonzero(~outliers), np.flatnonzero(outliers)
    beyond = np.minimum(bad - good[0], 0) + np.maximum(bad - good[-1], 0)
    replaced = seconds.copy()
    replaced[bad] = np.interp(bad, good, seconds[good]) + beyond * spacing
    for i, place in zip(bad, np.searchsorted(good, bad), strict=True):
        before, after = good[max(0, place - depth) : place], good[place : place + 1]
        if len(before) and len(after) and seconds[after[0]] < seconds[before[-1]] - 2 * _DEPTH * spacing:
            replaced[i] = seconds[before].max() + (i - before[-1]) * spacing
    return replaced


def _outliers(seconds: Float64[np.ndarray, " N"], depth: int, limit: float) -> Bool[np.ndarray, " N"]:
    """Packets that lie on the same side of both those before and those after them, by more than `limit`.

    Up to `_LONE` neighbours may be outliers too. A packet whose time is merely reordered has later times soon after it, and
    one at a restart of the clock has near times before it.
    """
    count, window = len(seconds), depth + _LONE
    outliers = np.zeros(count, bool)
    # The time goes back before or after an outlier.
    edges = np.flatnonzero(np.diff(seconds) < -limit)
    if len(edges) > _MAX_JUMPS:
        return outliers
    near = np.unique((edges[:, None] + np.arange(-_LONE, _LONE + 2)).ravel())
    for i in near[(near >= 0) & (near < count)]:
        before, after = seconds[max(0, i - window) : i], seconds[i + 1 : i + 1 + window]
        if not len(after):
            continue
        # With few packets around it, one that is merely reordered looks alike.
        far = limit if len(after) >= depth and len(before) > _LONE else max(limit, LONE_S)
        for sign in (1, -1):
            beyond = [int((sign * (seconds[i] - side) > far).sum()) for side in (before, after)]
            if beyond[0] >= len(before) - _LONE and beyond[1] >= max(1, len(after) - _LONE):
                outliers[i] = True
    return outliers


def _restarts(seconds: Float64[np.ndarray, " N"], depth: int) -> Bool[np.ndarray, " N"]:
    """Packets from which on all of `depth` times are before all of the `depth` times before: reordering never does that."""
    if len(seconds) < 2:
        return np.zeros(len(seconds), bool)
    edge = np.full(depth - 1, np.inf)
    windows = np.lib.stride_tricks.sliding_window_view
    # before[i]: least of the `depth` times before i; after[i]: greatest of the `depth` times from i on.
    before = windows(np.concatenate([edge, [np.inf], seconds]), depth).min(axis=1)[: len(seconds)]
    after = windows(np.concatenate([seconds, -edge]), depth).max(axis=1)[: len(seconds)]
    found = after < before
    found[0] = False
    return found


def _lone(steps: Float64[np.ndarray, " M"], far: Bool[np.ndarray, " M"], spacing: float) -> Bool[np.ndarray, " M"]:
    """Jumps that part a few frames at either end from a film that is shorter than the jump."""
    lone = np.zeros_like(far)
    length = float(steps[~far].sum()) + spacing
    for i in np.flatnonzero(far):
        few = min(i + 1, len(steps) - i) <= _LONE < len(steps)
        lone[i] = few and steps[i] > max(LONE_S, length)
    return lone


def _listed(at: Float64[np.ndarray, " n"], lengths: Float64[np.ndarray, " n"] | None = None) -> str:
    shown = [f"{second:,.1f} s" for second in at[:_SHOWN]]
    if lengths is not None:
        shown = [f"{length:,.1f} s at {second}" for length, second in zip(lengths[:_SHOWN], shown, strict=True)]
    return ", ".join(shown) + (f" and {len(at) - _SHOWN} more" if len(at) > _SHOWN else "")
