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

from experiments.synthetic import backgrounds, pictures, stamps

SHORTEST = 8.0  # seconds a picture stays at least: two groups of four sampled frames
LONGEST = 16.0
GAP = 1.5  # least seconds between two pictures
SPEED = 0.03  # greatest drift, frame sides per second either way
REPEAT = 0.5  # chance, per 64 s, that some name is shown again
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
    """From second `start_s` on, the background is the one of `seed`: generated, or (`footage` "train" or "test")
    real video of that set."""

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


def draw_seconds(rng: np.random.Generator) -> int:
    """A usual clip length: 32 to 64 seconds, evenly."""
    return int(rng.integers(RANGE_S[0], RANGE_S[1] + 1))


def draw_clip(rng: np.random.Generator, *, seconds: int, names: Sequence[str], footage: str = "") -> Clip:
    """A random clip of `seconds` (8 or more) whose pictures are among `names`.

    Pictures fill 60 to 75 % of the time (more in clips under 14 s, where one alone does). About one name per 128 s
    is shown two or three times, never twice in a row; the others once, as far as there are names.

    Args:
      rng: draws all of it; the events do not depend on `footage`.
      seconds, names: as above.
      footage: "" for generated backgrounds; "train": of half the scenes real video of the training set;
        "test": of all scenes real video of the test set.

    Raises ValueError for a clip too short for a picture and for footage of another name.
    """
    if seconds < SHORTEST:
        raise ValueError(f"a clip needs at least {SHORTEST:.0f} seconds, got {seconds}")
    if footage not in FOOTAGE:
        raise ValueError(f"footage is one of {', '.join(map(repr, FOOTAGE))}, not {footage!r}")
    spans = _spans(rng, seconds)
    events = tuple(
        _event(rng, name, start, stop)
        for name, (start, stop) in zip(_cast(rng, len(spans), seconds, names), spans, strict=False)
    )
    scenes, t = [], 0.0
    change = rng.random() < 0.4  # clips whose background is cut now and then
    while t < seconds:
        filmed = rng.random() < 0.5 or footage == "test"
        scenes.append(Scene(t, int(rng.integers(2**62)), footage if filmed else ""))
        t += round(rng.uniform(8, 30), 1) if change else seconds
    return Clip(float(seconds), events, tuple(scenes))


def _spans(rng: np.random.Generator, seconds: int) -> list[tuple[float, float]]:
    """When something is on screen: (start, stop) in seconds, counted in whole tenths."""
    shown = max(rng.uniform(0.6, 0.75) * seconds, SHORTEST)
    fewest, most = int(np.ceil(shown / LONGEST)), int(shown // SHORTEST)
    count = int(max(rng.integers(fewest, most + 1, size=2)))  # rather many short ones: more to ask about
    # Share out what is left after the least lengths; pull towards equal shares where one picture
    # would stay too long.
    extra = shown - count * SHORTEST
    share = extra * rng.dirichlet(np.ones(count))
    room, equal = LONGEST - SHORTEST, extra / count
    if share.max() > room:
        share = equal + (share - equal) * (room - equal) / (share.max() - equal)
    gaps = rng.dirichlet(np.ones(count + 1))
    if rng.random() < 0.2:
        gaps[0] = 0  # the clip begins with a picture
    gaps *= (seconds - shown - (count - 1) * GAP) / max(gaps.sum(), 1e-9)
    gaps[1:-1] += GAP
    spans, clock = [], 0
    for gap, length in zip(gaps, SHORTEST + share, strict=False):
        start = clock + int(10 * gap + 1e-6)
        clock = start + int(10 * length + 1e-6)
        spans.append((start / 10, clock / 10))
    return spans


def _cast(rng: np.random.Generator, count: int, seconds: int, names: Sequence[str]) -> list[str]:
    """The names of `count` events in order of time; the same name never twice in a row."""
    places = list(range(count))
    again: list[list[int]] = []
    for _ in range(rng.binomial(-(-seconds // 64), REPEAT)):
        wanted = 3 if rng.random() < 0.6 else 2
        chosen = _apart(rng, places, wanted) or _apart(rng, places, 2)
        if chosen and count >= 3:  # with two events, a repeat would leave nothing to compare
            again.append(chosen)
            places = [place for place in places if place not in chosen]
    deals = -(-count // len(names))  # more events than names: deal the names out again
    cast = [names[i] for _ in range(deals) for i in rng.permutation(len(names))][:count]
    for chosen in again:
        for place in chosen[1:]:
            cast[place] = cast[chosen[0]]
    return cast


def _apart(rng: np.random.Generator, places: Sequence[int], count: int) -> list[int]:
    """`count` of the places in order, no two of them neighbours; [] where a few tries find none."""
    for _ in range(8):
        if len(places) >= count:
            found = sorted(int(i) for i in rng.choice(places, count, replace=False))
            if min(np.diff(found)) > 1:
                return found
    return []


def _event(rng: np.random.Generator, name: str, start: float, stop: float) -> Event:
    size = rng.uniform(0.36, 0.6)
    # Both ends of the way lie inside, so every point between does.
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

    The box is tight around the turned picture, in fractions of the frame; None between pictures.
    """
    event = clip.at(t)
    if event is None:
        return None
    width, height = _turned(event.name, event.angle, event.flip).size
    scale = event.size / max(width, height)
    x = event.x + event.drift[0] * (t - event.start_s)
    y = event.y + event.drift[1] * (t - event.start_s)
    half_w, half_h = scale * width / 2, scale * height / 2
    return _index()[event.name], x - half_w, y - half_h, x + half_w, y + half_h


def render_frame(clip: Clip, t: float, size: int = 196) -> np.ndarray:
    """The frame at second `t`: uint8 [size, size, 3], RGB."""
    scene = max((s for s in clip.scenes if s.start_s <= t), key=lambda s: s.start_s, default=clip.scenes[0])
    frame = backgrounds.draw(scene.seed, t, size, *(() if not scene.footage else (scene.footage,)))
    box = boxes(clip, t)
    if box is not None:
        stamp = _stamp(clip.at(t), size)
        stamps.paste(frame, stamp, int(round(box[1] * size)), int(round(box[2] * size)))
    return frame


def render_frames(clip: Clip, times: Sequence[float], size: int = 196) -> np.ndarray:
    """The frames at the given seconds: uint8 [len(times), size, size, 3], RGB."""
    frames = np.empty((len(times), size, size, 3), np.uint8)
    for frame, t in zip(frames, times, strict=False):
        frame[...] = render_frame(clip, float(t), size)
    return frames


@functools.cache
def _index() -> dict[str, int]:
    return {name: i for i, name in enumerate(pictures.load()[0])}


@functools.lru_cache(maxsize=256)
def _turned(name: str, angle: float, flip: bool) -> Image.Image:
    """The picture mirrored, turned and cropped to what is visible."""
    picture = Image.fromarray(pictures.load()[1][_index()[name]])
    if flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    return picture.crop(picture.getchannel("A").point(lambda a: 255 * (a >= 16)).getbbox())


@functools.lru_cache(maxsize=128)
def _stamp(event: Event, size: int) -> stamps.Stamp:
    """The event's picture at the size it has in a frame of `size` pixels."""
    picture = _turned(event.name, event.angle, event.flip)
    scale = event.size * size / max(picture.size)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    rgba = np.array(picture.resize((width, height), Image.Resampling.BICUBIC))
    rgba[..., :3] = np.clip(rgba[..., :3] * np.float32(event.brightness), 0, 255).astype(np.uint8)
    return stamps.from_rgba(rgba)
