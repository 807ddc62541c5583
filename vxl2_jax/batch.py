"""Answer a queue of (video, questions). While one video is processed, the next one is opened and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from vxl2_jax import generate, ingest
from vxl2_jax.errors import TooLongError, VideoError
from vxl2_jax.frames import Frames, FrameSource, open_source
from vxl2_jax.generate import Answer
from vxl2_jax.ingest import Callbacks
from vxl2_jax.memory import VideoMemory
from vxl2_jax.options import AskOptions, WatchOptions
from vxl2_jax.runtime import Runtime
from vxl2_jax.video.reader import prefetch


@dataclass(frozen=True)
class Job:
    """A video (a file, a folder of images, or frames and seconds) and one or several questions about it."""

    video: str | Path | Frames
    questions: str | Sequence[str]


@dataclass(frozen=True)
class JobResult:
    """The result of a job: `error`, or the answers, the memory they come from and seconds per stage of watching."""

    job: Job
    answers: tuple[Answer, ...] = ()
    memory: VideoMemory | None = None
    timings: dict[str, float] = field(default_factory=dict)
    error: VideoError | TooLongError | None = None


def run(model: Runtime, jobs: Iterable[Job], watch: WatchOptions, ask: AskOptions) -> Iterator[JobResult]:
    """Answer jobs in order; see `api.Model.answer_all`."""
    watch.check()
    ask.check()
    jobs = iter(jobs)
    with ThreadPoolExecutor(1, "vxl2-next-video") as background:

        def start_next() -> tuple[Job, Future] | None:
            job = next(jobs, None)
            return None if job is None else (job, background.submit(_open, model, job.video, watch))

        following = start_next()
        while following:
            job, source = following
            following = start_next()  # only one video ahead, because its first frames are held in memory
            timings: dict[str, float] = {}
            try:
                with model.precision():
                    memory = ingest.watch(model, source.result(), watch, callbacks=Callbacks(timings=timings))
            except (VideoError, TooLongError) as error:
                yield JobResult(job, error=error)
                continue
            questions = [job.questions] if isinstance(job.questions, str) else list(job.questions)
            with model.precision():
                answers = generate.ask_many(model, memory, questions, ask, ())
            result = JobResult(job, tuple(answers), memory, timings)
            del memory, source  # the caller holds the memory: two of them may not fit on the device
            yield result
            del result


def _open(model: Runtime, video: str | Path | Frames, options: WatchOptions) -> FrameSource:
    """Open a video and start to read its first strides."""
    source = open_source(video, model.config.vision.image_size, options.sampling)
    count = model.sizes.stride * model.config.frames_per_group
    ahead = prefetch(source.batches(count, 0))
    first = next(ahead)

    def batches(size: int, start: int) -> Iterator[np.ndarray]:
        return chain([first], ahead) if (size, start) == (count, 0) else source.batches(size, start)

    return source._replace(batches=batches)
