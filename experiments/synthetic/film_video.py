"""Encoding films of hours: videos or generated backgrounds are looped, and needles are pasted over them.

Each second is a closed group of frames that decodes by itself. The seconds of the loop and those with a needle are
encoded once; the film consists of copies of these packets with new timestamps, so its length costs almost nothing.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import av
import numpy as np

from experiments.synthetic import backgrounds, clips, encode, stamps
from experiments.synthetic.films import Film
from vxl2_jax.errors import RequestError
from vxl2_jax.video.reader import open_video

SCENES, SCENE_S = 16, 30  # generated backgrounds in a loop, and seconds of each

Seconds = Callable[[], Iterator[np.ndarray]]
"""Starts an iteration over the whole seconds of a loop: uint8 [rate, size, size, 3] each."""


def write_mp4(film: Film, loop: Seconds, path: pathlib.Path, *, size: int, rate: int) -> int:
    """Write the film as an mp4 file, see `encode.open_mp4`. Returns the length of the loop in seconds.

    Frame i shows second i / rate. Raises RequestError for a loop shorter than a second, and what `loop` raises.
    """
    # Every second begins with a key frame, and frames are stored in display order.
    seekable = {"g": str(rate), "keyint_min": str(rate), "sc_threshold": "0", "flags": "+cgop", "bf": "0"}
    with encode.open_mp4(path, size, rate, {"crf": "23", **seekable}) as (container, stream):
        groups, length = _encode(film, loop, stream, rate)
        source = np.arange(film.seconds) % length
        shown = film.seconds_with_needle()
        source[shown] = length + np.arange(len(shown))
        for second, number in enumerate(source):
            for frame, packet in enumerate(groups[number]):
                packet.pts = packet.dts = second * rate + frame
                packet.time_base, packet.duration = Fraction(1, rate), 1
                container.mux(packet)
    return length


def _encode(film: Film, loop: Seconds, stream: av.VideoStream, rate: int) -> tuple[list[list[av.Packet]], int]:
    """The packets of each second of the loop, then of each second with a needle; and the length of the loop."""
    packets: list[av.Packet] = []
    sent = 0

    def send(second: np.ndarray) -> None:
        nonlocal sent
        for frame in second:
            picture = av.VideoFrame.from_ndarray(frame, "rgb24")
            picture.pts, sent = sent, sent + 1
            packets.extend(stream.encode(picture))

    length = 0
    for second in loop():
        send(second)
        length += 1
    if not length:
        raise RequestError("the videos of --loop are shorter than a second; give longer ones")
    shown = film.seconds_with_needle()
    needed = {second % length for second in shown}
    behind = {at: second for at, second in enumerate(loop()) if at in needed}
    for second in shown:
        send(paste_needle(film, behind[second % length], second))
    packets.extend(stream.encode())
    return [packets[i : i + rate] for i in range(0, len(packets), rate)], length


def paste_needle(film: Film, second: np.ndarray, at: int) -> np.ndarray:
    """A copy of the frames [rate, size, size, 3] with the needle of second `at` pasted over them."""
    rate, size = second.shape[:2]
    clip = film.clip()
    stamp = clips.stamp(clip.at(at), size)
    frames = second.copy()
    for number, frame in enumerate(frames):
        _, left, top, _, _ = clips.boxes(clip, at + number / rate)
        stamps.paste(frame, stamp, round(left * size), round(top * size))
    return frames


def from_files(files: Sequence[pathlib.Path], size: int, rate: int) -> Iterator[np.ndarray]:
    """The whole seconds of video files, one file after the other, resized to a square. A last partial second is dropped.

    Raises vxl2_jax.VideoError for a file that cannot be read.
    """
    for file in files:
        source = open_video(file, size=size, fps=float(rate))
        whole = int(source.duration_s + 1e-3)
        # At each time the latest frame that is due.
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


def generated(seed: int, size: int, rate: int) -> Iterator[np.ndarray]:
    """The whole seconds of generated backgrounds, another one every SCENE_S seconds."""
    rng = np.random.default_rng(seed)
    for scene in rng.integers(2**62, size=SCENES):
        for second in range(SCENE_S):
            yield np.stack([backgrounds.draw(int(scene), second + i / rate, size) for i in range(rate)])
