"""Films in the sizes and codecs that people have, of moving textured pictures: what readers of videos are measured on."""

import contextlib
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from experiments.synthetic import backgrounds, files

RATE = 30  # frames per second
SCENE_S = 7.5  # seconds until another background appears
FOOTAGE = ("test", "")  # backgrounds in turn
GRAIN = 4  # standard deviation of the noise over the pictures, levels of 255


class Form(NamedTuple):
    """How a film is stored. Its name ends in the file's suffix; options are the encoder's."""

    width: int
    height: int
    codec: str
    options: dict[str, str]


def _h264(group: int) -> dict[str, str]:
    return {"preset": "veryfast", "crf": "23", "g": str(group), "keyint_min": str(group // 10)}


FORMS = {
    "h264_720p_gop60.mp4": Form(1280, 720, "libx264", _h264(60)),
    "h264_720p_gop250.mp4": Form(1280, 720, "libx264", _h264(250)),
    "hevc_720p.mp4": Form(1280, 720, "libx265", {"preset": "veryfast", "crf": "26", "x265-params": "log-level=none"}),
    "vp9_720p.webm": Form(
        1280, 720, "libvpx-vp9", {"deadline": "realtime", "cpu-used": "7", "b": "2500k", "row-mt": "1"}
    ),
    "h264_1080p_gop250.mp4": Form(1920, 1080, "libx264", _h264(250)),
}


def pictures(seed: int, frames: int, width: int, height: int) -> Iterator[np.ndarray]:
    """The pictures of a film: uint8 [height, width, 3] each. Backgrounds under a grain that changes with each picture."""
    rng = np.random.default_rng(seed)
    grain = rng.normal(0, GRAIN, (2 * height, 2 * width, 1)).round().astype(np.int16)
    top = (width - height) // 2
    for number in range(frames):
        second = number / RATE
        scene = int(second // SCENE_S)
        picture = backgrounds.draw(seed + 100 * scene, second, width, FOOTAGE[scene % len(FOOTAGE)])
        y, x = rng.integers(height), rng.integers(width)
        noisy = picture[top : top + height] + grain[y : y + height, x : x + width]
        yield noisy.clip(0, 255).astype(np.uint8)


def write(folder: pathlib.Path, names: list[str], seed: int, seconds: float) -> Iterator[str]:
    """Write films of `FORMS` by name into a folder that exists; those of one size together. Yields their names.

    Raises RequestError if a file cannot be written.
    """
    for size in dict.fromkeys(FORMS[name][:2] for name in names):
        together = [name for name in names if FORMS[name][:2] == size]
        with contextlib.ExitStack() as stack:
            outputs = [stack.enter_context(_output(folder / name, FORMS[name])) for name in together]
            for number, picture in enumerate(pictures(seed, round(seconds * RATE), *size)):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
                for container, stream in outputs:
                    frame.pts, frame.time_base = number, Fraction(1, RATE)  # an encoder may change them
                    container.mux(stream.encode(frame))
            for container, stream in outputs:
                container.mux(stream.encode())
        yield from together


@contextlib.contextmanager
def _output(path: pathlib.Path, form: Form) -> Iterator[tuple[av.container.OutputContainer, av.VideoStream]]:
    kind = {".mp4": "mp4", ".webm": "webm"}[path.suffix]
    with files.atomic(path) as part, av.open(str(part), "w", format=kind) as container:
        stream = container.add_stream(form.codec, rate=RATE, options=form.options)
        stream.width, stream.height, stream.pix_fmt = form.width, form.height, "yuv420p"
        yield container, stream
