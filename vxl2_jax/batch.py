"""Answer a queue of (video, questions). While one video is processed, the next one is opened and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vxl2_jax import generate, ingest, likelihood
from vxl2_jax.answer import Answer
from vxl2_jax.cache.pooling import check_compression
from vxl2_jax.errors import OUT_OF_MEMORY, RequestError, TooLongError, Vxl2Error, is_out_of_memory
from vxl2_jax.frames import Frames, FrameSource, open_source
from vxl2_jax.ingest import Callbacks
from vxl2_jax.memory import VideoMemory
from vxl2_jax.options import AskOptions, WatchOptions
from vxl2_jax.relevance.oracle import oracle_of
from vxl2_jax.runtime import Runtime
from vxl2_jax.storage.shared import SharedFolder
from vxl2_jax.video.ahead import prefetch


@dataclass(frozen=True)
class Job:
    """A video (a file, a folder of images, or frames and seconds) and one or several questions about it.

    choices: for each question a list of texts, of which the most likely one is the answer; None: answers are generated.
    """

    video: str | Path | Frames
    questions: str | Sequence[str]
    choices: Sequence[Sequence[str]] | None = None


@dataclass(frozen=True)
class JobResult:
    """The result of a job: `error`, or the answers, the memory they come from and seconds per stage of watching.

    Attributes:
      answers: one per question: the answer, or the error why the question was not asked (it or one of its choices is empty or too long).
      error: the video cannot be read, its memory would not fit, none of the questions can be asked, or memory ran out.
    """

    job: Job
    answers: tuple[Answer | RequestError, ...] = ()
    memory: VideoMemory | None = None
    timings: dict[str, float] = field(default_factory=dict)
    error: Vxl2Error | None = None


_END: Any = object()


def run(
    model: Runtime,
    jobs: Iterable[Job],
    watch: WatchOptions,
    ask: AskOptions,
    memories: Path | SharedFolder | None = None,
) -> Iterator[JobResult]:
    """Answer jobs in order; see `api.Model.answer_all`."""
    watch.check()
    ask.check()
    # What would fail every job is an error of the whole queue.
    check_compression(watch.compression, model.config.visual_tokens)
    if oracle := oracle_of(ask.relevance):
        ask = replace(ask, relevance=oracle)
    jobs = iter(jobs)
    with ThreadPoolExecutor(1, "vxl2-next-video") as background:

        def start_next() -> tuple[Job, list[str | RequestError], Future | Vxl2Error] | None:
            if (job := next(jobs, _END)) is _END:
                return None
            try:
                questions = _questions(model, job, ask)
            except Vxl2Error as error:
                return job, [], error
            return job, questions, background.submit(_open, model, job.video, watch)

        following = start_next()
        while following:
            job, questions, source = following
            following = start_next()  # only one video ahead, because its first frames are held in memory
            try:
                if isinstance(source, Vxl2Error):
                    raise source
                timings: dict[str, float] = {}
                with model.precision():
                    callbacks = Callbacks(timings=timings)
                    memory = ingest.watch(model, source.result(), watch, memories=memories, callbacks=callbacks)
                    asked = [question for question in questions if isinstance(question, str)]
                    if job.choices is None:
                        answers = iter(generate.ask_many(model, memory, asked, ask))
                    else:
                        pairs = zip(job.choices, questions, strict=True)
                        offered = [each for each, question in pairs if isinstance(question, str)]
                        answers = iter(likelihood.choose_many(model, memory, asked, offered, ask))
                    in_order = tuple(next(answers) if isinstance(one, str) else one for one in questions)
                result = JobResult(job, in_order, memory, timings)
            except Vxl2Error as error:
                result = JobResult(job, error=error.with_traceback(None))  # a traceback would keep arrays alive
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                result = JobResult(job, error=TooLongError(f"{_name(job)}: {OUT_OF_MEMORY}"))
            memory = source = None  # the caller holds the memory: two of them may not fit on the device
            yield result
            del result


def _questions(model: Runtime, job: Job, ask: AskOptions) -> list[str | RequestError]:
    """The questions of a job; in the place of one that cannot be asked, the error. Raises RequestError if none can be."""
    if not isinstance(job, Job):
        raise RequestError(f"a job must be a Job, not {type(job).__name__}")
    questions = [job.questions] if isinstance(job.questions, str) else job.questions
    if not isinstance(questions, Sequence):
        raise RequestError(f"questions must be a list of texts, not {type(questions).__name__}")
    if job.choices is not None:
        likelihood.check_choices(job.choices, len(questions))
    found: list[str | RequestError] = []
    for number, question in enumerate(questions):
        try:
            (encoded,) = generate.encode_questions(model, [question], ask)
            if job.choices is not None:
                likelihood.encode_choices(model, encoded, job.choices[number])
            found.append(encoded.text)
        except RequestError as error:
            found.append(error.with_traceback(None))
    errors = [one for one in found if isinstance(one, RequestError)]
    if errors and len(errors) == len(found):
        raise errors[0]
    return found


def _name(job: Job) -> str:
    return str(job.video) if isinstance(job.video, (str, Path)) else "frames"


def _open(model: Runtime, video: str | Path | Frames, options: WatchOptions) -> FrameSource:
    """Open a video and start to read its first strides."""
    source = open_source(video, model.config.vision.image_size, options.sampling)
    count = model.sizes.stride * model.config.frames_per_group
    ahead = prefetch(source.batches(count, 0))
    first = next(ahead)

    def batches(size: int, start: int) -> Iterator[np.ndarray]:
        return chain([first], ahead) if (size, start) == (count, 0) else source.batches(size, start)

    return source._replace(batches=batches)
