"""Video-XL-2 in JAX: watch a long video once, ask it many times.

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

__all__ = [
    "Answer",
    "CheckpointError",
    "Chunk",
    "JobResult",
    "Job",
    "Model",
    "RequestError",
    "TooLongError",
    "VideoError",
    "VideoMemory",
    "Vxl2Error",
    "load",
]
