"""Small generated videos whose frames encode their frame number."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH = 48, 64


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Frame `number`: its 10 bits as black and white bars over a moving gradient; survives lossy compression."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 1] = (np.arange(width) * 2 + number * 5)[None, :] % 256
    bits = [(number >> bit) & 1 for bit in range(10)]
    for bit, on in enumerate(bits):
        rgb[: height // 2, bit * width // 10 : (bit + 1) * width // 10] = 255 * on
    return rgb


def number_of(rgb: np.ndarray) -> int:
    """The frame number encoded in a (possibly resized or lossy) picture."""
    height, width = rgb.shape[:2]
    middle = [int((bit + 0.5) * width / 10) for bit in range(10)]
    return sum(int(rgb[height // 4, x].mean() > 127) << bit for bit, x in enumerate(middle))


def write_clip(
    path: Path,
    frames: int,
    *,
    codec: str = "libx264",
    rate: int = 25,
    times: list[float] | None = None,
    rotation: int = 0,
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (HEIGHT, WIDTH),
    **options: str,
) -> Path:
    """Write frames 0 ... frames - 1; `times` (seconds) makes the rate variable."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.options = options
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts = number if times is None else round(times[number] * 1000)
            frame.time_base = Fraction(1, rate) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path, codec: str) -> Path:
    """Half a second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16000)
        stream.layout = "mono"
        for start in range(0, 8192, 1024):
            samples = np.zeros((1, 1024), np.int16 if codec == "pcm_s16le" else np.float32)
            format = "s16" if codec == "pcm_s16le" else "fltp"
            frame = av.AudioFrame.from_ndarray(samples, format=format, layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
