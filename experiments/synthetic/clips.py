"""Clips: which picture is on screen when and where, and what each frame looks like.

names, _ = pictures.load()
clip = draw_clip(np.random.default_rng(0), seconds=48, names=names)
frames = render_frames(clip, np.arange(48), size=196)   # one frame per second
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from experiments.synthetic import backgrounds, pictures, schedule, stamps

SPEED = 0.03  # greatest drift in either direction, frame sides per second
RANGE_S = (32, 64)  # the usual clip lengths
FOOTAGE = ("", "train", "test")


@dataclasses.dataclass(frozen=True)
class Event:
    """One picture on screen from `start_s` until just before `stop_s`.

    Attributes:
      name: which picture.
      start_s, stop_s: seconds from the start of the clip, in tenths.
      x, y: centre of the picture at `start_s`, as fractions of the frame.
      size: longer side of the visible picture, as a fraction of the frame.
      drift: how far the centre moves per second (right, down), in frame sides.
      brightness: factor on the colours.
      angle: rotation in degrees, counter-clockwise.
      flip: mirrored left to right.
    """

    name: str
    start_s: float
    stop_s: float
    x: float
    y: float
    size: float
    drift: tuple[float, float] = (0.0, 0.0)
    brightness: float = 1.0
    angle: float = 0.0
    flip: bool = False


@dataclasses.dataclass(frozen=True)
class Scene:
    """The background from second `start_s` on: generated from `seed`, or real video of the set `footage` ("train" or
    "test") chosen by it."""

    start_s: float
    seed: int
    footage: str = ""


@dataclasses.dataclass(frozen=True)
class Clip:
    """Events in order of time, never two at once; the first scene starts at second 0."""

    seconds: float
    events: tuple[Event, ...]
    scenes: tuple[Scene, ...]

    def at(self, t: float) -> Event | None:
        """The event on screen at second `t`."""
        return next((e for e in self.events if e.start_s <= t < e.stop_s), None)


def draw_seconds(rng: np.random.Generator, between: Sequence[int] = RANGE_S) -> int:
    """A random whole number of seconds, uniform between the two given, in any order and inclusive."""
    return int(rng.integers(min(between), max(between) + 1))


def draw_clip(rng: np.random.Generator, *, seconds: int, names: Sequence[str], footage: str = "") -> Clip:
    """A random clip.

    Pictures fill 60 to 75 % of the time (more in clips under 14 s). About one name per 128 s is shown two or three
    times, never twice in a row; the others once, if there are enough names.

    Args:
      rng: the events do not depend on `footage`.
      seconds: 8 or more.
      names: the pictures to choose from.
      footage: "" for generated backgrounds, "train" for real video of the training set behind half of the scenes,
        "test" for real video of the test set behind all of them.

    Raises ValueError for a clip that is too short for a picture.
    """
    if seconds < schedule.SHORTEST:
        raise ValueError(f"a clip needs at least {schedule.SHORTEST:.0f} seconds, got {seconds}")
    spans = schedule.draw_spans(rng, seconds)
    events = tuple(
        draw_event(rng, name, start, stop)
        for name, (start, stop) in zip(schedule.draw_names(rng, len(spans), seconds, names), spans, strict=False)
    )
    scenes, t = [], 0.0
    change = rng.random() < 0.4  # the background changes every 8 to 30 s
    while t < seconds:
        filmed = rng.random() < 0.5 or footage == "test"
        scenes.append(Scene(t, int(rng.integers(2**62)), footage if filmed else ""))
        t += round(rng.uniform(8, 30), 1) if change else seconds
    return Clip(float(seconds), events, tuple(scenes))


def draw_event(rng: np.random.Generator, name: str, start: float, stop: float) -> Event:
    """A picture from second `start` to `stop` with random position, size, drift and looks."""
    size = rng.uniform(0.36, 0.6)
    # The picture stays inside the frame, because it does so at both ends of its path.
    here, there = rng.uniform(size / 2, 1 - size / 2, (2, 2))
    drift = np.clip((there - here) / (stop - start), -SPEED, SPEED)
    return Event(
        name,
        start,
        stop,
        *map(float, here),
        float(size),
        tuple(map(float, drift)),
        brightness=float(rng.uniform(0.85, 1.15)),
        angle=float(rng.uniform(-12, 12)),
        flip=bool(rng.random() < 0.5),
    )


def boxes(clip: Clip, t: float) -> tuple[int, float, float, float, float] | None:
    """The picture visible at second `t`: (index among `pictures.load()` names, x0, y0, x1, y1).

    The box is tight around the rotated picture, in fractions of the frame; None between pictures.
    """
    event = clip.at(t)
    if event is None:
        return None
    width, height = _rotated(event.name, event.angle, event.flip).size
    scale = event.size / max(width, height)
    x = event.x + event.drift[0] * (t - event.start_s)
    y = event.y + event.drift[1] * (t - event.start_s)
    half_w, half_h = scale * width / 2, scale * height / 2
    return _index()[event.name], x - half_w, y - half_h, x + half_w, y + half_h


def render_frame(clip: Clip, t: float, size: int = 196) -> np.ndarray:
    """The frame at second `t`: uint8 [size, size, 3], RGB."""
    scene = max((s for s in clip.scenes if s.start_s <= t), key=lambda s: s.start_s, default=clip.scenes[0])
    frame = backgrounds.draw(scene.seed, t, size, scene.footage)
    box = boxes(clip, t)
    if box is not None:
        stamps.paste(frame, stamp(clip.at(t), size), int(round(box[1] * size)), int(round(box[2] * size)))
    return frame


def render_frames(clip: Clip, times: Sequence[float], size: int = 196) -> np.ndarray:
    """The frames at the given seconds: uint8 [len(times), size, size, 3], RGB."""
    frames = np.empty((len(times), size, size, 3), np.uint8)
    for frame, t in zip(frames, times, strict=True):
        frame[...] = render_frame(clip, float(t), size)
    return frames


@functools.cache
def _index() -> dict[str, int]:
    return {name: i for i, name in enumerate(pictures.load()[0])}


@functools.lru_cache(maxsize=256)
def _rotated(name: str, angle: float, flip: bool) -> Image.Image:
    """The picture mirrored, rotated and cropped to its visible part."""
    picture = Image.fromarray(pictures.load()[1][_index()[name]])
    if flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    return picture.crop(picture.getchannel("A").point(lambda a: 255 * (a >= 16)).getbbox())


@functools.lru_cache(maxsize=128)
def stamp(event: Event, size: int) -> stamps.Stamp:
    """The event's picture as it appears in a frame of `size` pixels."""
    picture = _rotated(event.name, event.angle, event.flip)
    scale = event.size * size / max(picture.size)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    rgba = np.array(picture.resize((width, height), Image.Resampling.BICUBIC))
    rgba[..., :3] = np.clip(rgba[..., :3] * np.float32(event.brightness), 0, 255).astype(np.uint8)
    return stamps.from_rgba(rgba)
