from .api import Model, load
from .batch import Job, JobResult
from .errors import CheckpointError, RequestError, TooLongError, ToyModelWarning, VideoError, Vxl2Error
from .generate import Answer, Chunk
from .memory import VideoMemory
from .options import AskOptions, WatchOptions

__version__: str
__all__ = [
    "Answer",
    "AskOptions",
    "CheckpointError",
    "Chunk",
    "Job",
    "JobResult",
    "Model",
    "RequestError",
    "TooLongError",
    "ToyModelWarning",
    "VideoError",
    "VideoMemory",
    "Vxl2Error",
    "WatchOptions",
    "load",
]
