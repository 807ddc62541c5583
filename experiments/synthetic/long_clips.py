"""Films of hours with needles: real clips or generated backgrounds looped, and now and then a picture over them.

Everything is cut into whole seconds, each one closed group of frames that decodes by itself. Every second of
the loop is encoded once, every second with a needle once; a film is then those packets copied in order with
new timestamps, so its length costs next to nothing.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from experiments.synthetic import backgrounds, clips, encode, pictures, questions, stamps
from vxl2_jax.video.reader import open_video

SHORTEST, LONGEST = 8, 16  # seconds a needle stays, whole
EDGE = 16  # seconds free of needles at both ends, which are loaded dense whatever is asked
GAP = 4  # least seconds between two needles
SCENES, SCENE_S = 16, 30  # the loop of generated backgrounds


@dataclass(frozen=True)
class Film:
    """`needles` are events with whole seconds, in order of time, each of another name."""

    seconds: int
    needles: tuple[clips.Event, ...]

    def at(self, second: int) -> clips.Event | None:
        """The needle on screen in the whole second from `second` on."""
        return next((e for e in self.needles if e.start_s <= second < e.stop_s), None)


@dataclass(frozen=True)
class Loop:
    """What is looped behind the needles: video files one after the other, or (none given) generated backgrounds."""

    files: tuple[Path, ...]
    seed: int

    def seconds(self, size: int, rate: int) -> Iterator[np.ndarray]:
        """Its whole seconds in order: uint8 [rate, size, size, 3]. Files are squashed to a square; of each, what
        is left after the last whole second is dropped.

        Raises vxl2_jax.VideoError for a file that cannot be read.
        """
        if self.files:
            return (second for file in self.files for second in _seconds_of(file, size, rate))
        return _generated(self.seed, size, rate)


def least_seconds(needles: int) -> int:
    """The shortest film that has room for so many needles."""
    return 2 * EDGE + needles * (LONGEST + GAP)


def draw_film(rng: np.random.Generator, *, seconds: int, needles: int) -> Film:
    """Needles at random whole seconds, one in each of `needles` equal parts of the film, 8 to 16 seconds each.

    Raises ValueError for a film too short for them or more needles than names.
    """
    names, _ = pictures.load()
    if not 1 <= needles <= len(names):
        raise ValueError(f"from 1 to {len(names)} needles, each another picture, not {needles}")
    if seconds < least_seconds(needles):
        raise ValueError(f"{needles} needles need a film of at least {least_seconds(needles)} seconds, not {seconds}")
    bounds = np.linspace(EDGE, seconds - EDGE, needles + 1).astype(int)
    events = []
    for number, (first, stop) in enumerate(zip(rng.permutation(len(names))[:needles], bounds[1:], strict=True)):
        length = int(rng.integers(SHORTEST, LONGEST + 1))
        start = int(rng.integers(bounds[number], stop - GAP - length + 1))
        events.append(clips._event(rng, names[first], float(start), float(start + length)))
    return Film(seconds, tuple(events))


def film_questions(rng: np.random.Generator, film: Film) -> list[tuple[str, questions.Question]]:
    """(needle's name, question): of every needle whether it is there, when, and what appears at a moment of it;
    of every two neighbours which comes first (the name is then the earlier one's)."""

    def ask(kind: str, *events: clips.Event) -> questions.Question:
        return questions.ask(rng, clips.Clip(float(film.seconds), events, ()), kind)

    found = []
    for event in film.needles:
        name = event.name
        there = f"Is there {questions.a(name)}?"
        shown = ((event.start_s, event.stop_s),)
        found.append((name, questions.Question(there, "yes", "exists", 0.5, evidence=shown)))
        found += [(name, ask(kind, event)) for kind in ("when", "what")]
    return found + [(pair[0].name, ask("first", *pair)) for pair in itertools.pairwise(film.needles)]


Progress = Callable[[str, int, int | None], None]


def write_mp4(
    film: Film, loop: Loop, path: str | os.PathLike, size: int = 196, rate: int = 8, progress: Progress | None = None
) -> int:
    """Write the film as H.264, `rate` frames a second of `size` × `size` pixels; returns the loop's length in seconds.

    Frame i shows second i / rate; `size` must be even. The file appears under its name only when it is
    complete. `progress` is called with a stage, the seconds of it done, and of how many (None: not known).
    Raises ValueError for a loop shorter than a second, and as `Loop.seconds` does.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    progress = progress or (lambda stage, done, total: None)
    try:
        with av.open(str(part), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate, options=_options(rate))
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            groups, length = _encode(film, loop, stream, size, rate, progress)
            drawn = [second for second in range(film.seconds) if film.at(second)]
            source = np.arange(film.seconds) % length
            source[drawn] = length + np.arange(len(drawn))
            for second, number in enumerate(source):
                for frame, packet in enumerate(groups[number]):
                    packet.pts = packet.dts = second * rate + frame
                    packet.time_base, packet.duration = Fraction(1, rate), 1
                    container.mux(packet)
                progress("joining", second + 1, film.seconds)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return length


def _options(rate: int) -> dict[str, str]:
    """A group of frames for every second, each decodable by itself, frames stored in the order they are shown."""
    each = {"g": str(rate), "keyint_min": str(rate), "sc_threshold": "0", "flags": "+cgop", "bf": "0"}
    return {"crf": "23", "preset": "veryfast", **each, **encode.REPRODUCIBLE}


def _encode(
    film: Film, loop: Loop, stream: av.VideoStream, size: int, rate: int, progress: Progress
) -> tuple[list[list[av.Packet]], int]:
    """Packets of every second of the loop, then of every second with a needle; and how many the loop has."""
    packets: list[av.Packet] = []
    sent = 0

    def send(second: np.ndarray) -> None:
        nonlocal sent
        for frame in second:
            picture = av.VideoFrame.from_ndarray(frame, "rgb24")
            picture.pts, sent = sent, sent + 1
            packets.extend(stream.encode(picture))

    length = 0
    for second in loop.seconds(size, rate):
        send(second)
        length += 1
        progress("encoding the loop", length, None)
    if not length:
        raise ValueError("what is to be looped is shorter than a second")
    drawn = [second for second in range(film.seconds) if film.at(second)]
    needed = {second % length for second in drawn}
    behind = {at: second for at, second in enumerate(loop.seconds(size, rate)) if at in needed}
    for number, second in enumerate(drawn):
        send(_lay(film, behind[second % length], second))
        progress("encoding needles", number + 1, len(drawn))
    packets.extend(stream.encode())
    return [packets[i : i + rate] for i in range(0, len(packets), rate)], length


def _lay(film: Film, second: np.ndarray, at: int) -> np.ndarray:
    """The frames of second `at` with the needle over them; the frames given are not changed."""
    rate, size = second.shape[:2]
    clip, stamp = clips.Clip(float(film.seconds), film.needles, ()), clips._stamp(film.at(at), second.shape[1])
    frames = second.copy()
    for number, frame in enumerate(frames):
        _, left, top, _, _ = clips.boxes(clip, at + number / rate)
        stamps.paste(frame, stamp, round(left * size), round(top * size))
    return frames


def _seconds_of(file: Path, size: int, rate: int) -> Iterator[np.ndarray]:
    """Whole seconds of a video file; at every moment the latest frame that is due."""
    source = open_video(file, size=size, fps=float(rate))
    whole = int(source.duration_s + 1e-3)
    due = np.searchsorted(source.seconds, np.arange(whole * rate) / rate + 1e-6, "right") - 1
    frames = (frame for batch in source.batches(64) for frame in batch)
    at, frame = -1, None
    for first in range(0, whole * rate, rate):
        second = np.empty((rate, size, size, 3), np.uint8)
        for number, wanted in enumerate(due[first : first + rate].clip(0)):
            while at < wanted:
                frame, at = next(frames), at + 1
            second[number] = frame
        yield second


def _generated(seed: int, size: int, rate: int) -> Iterator[np.ndarray]:
    """Backgrounds as behind generated clips, cut every 30 seconds."""
    rng = np.random.default_rng(seed)
    for scene in rng.integers(2**62, size=SCENES):
        for second in range(SCENE_S):
            yield np.stack([backgrounds.draw(int(scene), second + i / rate, size) for i in range(rate)])
