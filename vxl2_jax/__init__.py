"""Video-XL-2 in JAX: watch a long video once, ask its memory many times.

import vxl2_jax as vxl2

model = vxl2.load("nano")
memory = model.watch("video.mp4")
answer = model.ask(memory, "What appears at 12 seconds?")
print(answer.text, answer.chunks)
"""

from vxl2_jax.api import Model, load
from vxl2_jax.batch import Job, JobResult
from vxl2_jax.errors import CheckpointError, RequestError, TooLongError, VideoError, Vxl2Error
from vxl2_jax.generate import Answer, Chunk
from vxl2_jax.memory import VideoMemory
from vxl2_jax.options import AskOptions, WatchOptions

Done = JobResult
"""Former name of `JobResult`."""

__all__ = [
    "Answer",
    "AskOptions",
    "CheckpointError",
    "Chunk",
    "Done",
    "Job",
    "JobResult",
    "Model",
    "RequestError",
    "TooLongError",
    "VideoError",
    "VideoMemory",
    "Vxl2Error",
    "WatchOptions",
    "load",
]
