from .answer import Answer, Choice, Chunk
from .api import Model, load
from .batch import Job, JobResult
from .errors import CheckpointError, RequestError, TooLongError, ToyModelWarning, VideoError, Vxl2Error
from .memory import VideoMemory
from .options import AskOptions, WatchOptions
from .stream import AnswerStream

__version__: str
__all__ = [
    "Answer",
    "AnswerStream",
    "AskOptions",
    "CheckpointError",
    "Choice",
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
