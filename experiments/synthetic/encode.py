"""Clips as mp4 files."""

import os
import pathlib

import av
import numpy as np

from experiments.synthetic import clips

# With its macroblock tree x264 makes another file of the same frames every time.
REPRODUCIBLE = {"x264-params": "mbtree=0"}


def render_mp4(clip: clips.Clip, path: str | os.PathLike, size: int = 196, rate: int = 8) -> None:
    """Writes the clip as H.264: `rate` frames per second of `size` × `size` pixels.

    Frame i shows second i / rate. `size` must be even (the chroma planes are half as wide). The
    file appears under its name only when it is complete.
    """
    path = pathlib.Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with av.open(str(part), "w", format="mp4") as container:
            stream = container.add_stream(
                "libx264", rate=rate, options={"crf": "20", "preset": "veryfast", **REPRODUCIBLE}
            )
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for t in np.arange(round(clip.seconds * rate)) / rate:
                picture = av.VideoFrame.from_ndarray(clips.render_frame(clip, float(t), size), "rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
