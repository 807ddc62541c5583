"""A queue of (video, questions): the next video is opened and read while this one is watched and answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from vxl2_jax import ingest
from vxl2_jax.errors import TooLongError, VideoError
from vxl2_jax.generate import Answer
from vxl2_jax.ingest import Frames, FrameSource
from vxl2_jax.memory import VideoMemory
from vxl2_jax.runtime import Runtime
from vxl2_jax.video.reader import prefetch


@dataclass(frozen=True)
class Job:
    """A video (a file, a folder of images, or frames and seconds) and what is asked about it: one question or several."""

    video: str | Path | Frames
    questions: str | Sequence[str]


@dataclass(frozen=True)
class JobResult:
    """A job's answers, the memory they come from, seconds per stage of watching; or why it could not be watched."""

    job: Job
    answers: tuple[Answer, ...] = ()
    memory: VideoMemory | None = None
    timings: Mapping[str, float] | None = None
    error: VideoError | TooLongError | None = None


def run(model: Any, jobs: Iterable[Job], watch: Mapping[str, Any], ask: Mapping[str, Any]) -> Iterator[JobResult]:
    """See `api.Model.answer_all`."""
    sampling = {name: watch[name] for name in ingest.SAMPLING if name in watch}
    jobs = iter(jobs)
    with ThreadPoolExecutor(1, "vxl2-next-video") as background:

        def begin() -> tuple[Job, Future] | None:
            job = next(jobs, None)
            return job and (job, background.submit(_opened, model, job.video, sampling))

        following = begin()
        while following:
            job, source = following
            following = begin()  # one video ahead, no more: its first frames are in memory already
            timings: dict[str, float] = {}
            try:
                memory = model.watch(source.result(), **watch, timings=timings)
            except (VideoError, TooLongError) as error:
                yield JobResult(job, error=error)
                continue
            questions = [job.questions] if isinstance(job.questions, str) else list(job.questions)
            done = JobResult(job, tuple(model.ask(memory, questions, **ask)), memory, timings)
            del memory, source  # the caller has them: two memories need not stand on the device at once
            yield done
            del done


def _opened(model: Runtime, video: str | Path | Frames, sampling: Mapping[str, Any]) -> FrameSource:
    """A source whose first strides are being read already."""
    source = ingest.open_source(video, model.config.vision.image_size, sampling)
    count = model.sizes.stride * model.config.frames_per_group
    ahead = prefetch(source.batches(count, 0))
    first = next(ahead)

    def begun(size, start):
        return chain([first], ahead) if (size, start) == (count, 0) else source.batches(size, start)

    return source._replace(batches=begun)
