"""Frames as mp4 files."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping

import av
import numpy as np

from experiments.synthetic import clips, files
from vxl2_jax.video.index import GENERATED

QUALITY = 20  # x264's constant rate factor: lower is better and larger


@contextlib.contextmanager
def open_mp4(
    path: str | os.PathLike, size: int, rate: int, options: Mapping[str, str]
) -> Iterator[tuple[av.container.OutputContainer, av.VideoStream]]:
    """An mp4 file with one H.264 stream of `rate` frames per second of `size` × `size` pixels, written atomically.

    Its metadata say that it is generated: nano warns about other videos.

    `size` must be even, because the chroma planes are half as wide.
    """
    # With its macroblock tree, x264 encodes the same frames differently every time.
    options = {"preset": "veryfast", "x264-params": "mbtree=0", **options}
    with files.atomic(pathlib.Path(path)) as part, av.open(str(part), "w", format="mp4") as container:
        container.metadata["comment"] = GENERATED
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        yield container, stream


def render_mp4(
    clip: clips.Clip, path: str | os.PathLike, size: int = 196, rate: int = 8, quality: int = QUALITY
) -> None:
    """Write a clip as an mp4 file, see `open_mp4`. Frame i shows second i / rate."""
    with open_mp4(path, size, rate, {"crf": str(quality)}) as (container, stream):
        for t in np.arange(round(clip.seconds * rate)) / rate:
            frame = av.VideoFrame.from_ndarray(clips.render_frame(clip, float(t), size), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
