"""The public interface: load a model, watch a video once, ask its memory many times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from vxl2_jax import batch, generate, ingest, likelihood
from vxl2_jax import stream as streaming
from vxl2_jax.answer import Answer
from vxl2_jax.batch import Job, JobResult
from vxl2_jax.errors import RequestError, first_line
from vxl2_jax.frames import Frames, FrameSource, Seconds
from vxl2_jax.ingest import Callbacks
from vxl2_jax.loading import Progress, load_runtime
from vxl2_jax.memory import VideoMemory
from vxl2_jax.options import AskOptions, WatchOptions, takes
from vxl2_jax.runtime import Runtime
from vxl2_jax.storage.shared import open_folder
from vxl2_jax.stream import AnswerStream


class Model(Runtime):
    """A loaded model. `runtime.Runtime` describes the data it holds."""

    @takes(WatchOptions)
    def watch(
        self,
        video: str | Path | Frames | FrameSource,
        *,
        out: str | Path | None = None,
        progress: Progress | None = None,
        timings: dict[str, float] | None = None,
        **keywords: Any,
    ) -> VideoMemory:
        """Watch a video and return its memory.

        Args:
          video: a video file, an image, a folder of images, or (frames uint8 [F, px, px, 3], times in seconds [F]) with
            px = `config.vision.image_size`.
          {options}
          out: a memory file to write while watching. If watching is interrupted, the same call resumes; if the file
            already holds this memory, it is loaded instead.
          progress: called with (frames done, total frames).
          timings: receives seconds per stage: read (waiting for frames), vision, prefill, write (waiting for the memory
            file), and compile, which the other stages do not include.

        Raises:
          VideoError: the video cannot be read.
          RequestError: an option is out of range, or `out` cannot be written or holds another memory.
          TooLongError: the memory would not fit the device. Raised before watching.
        """
        options = WatchOptions(**keywords)
        with self.precision():
            return ingest.watch(self, video, options, out=out, callbacks=Callbacks(progress, timings))

    def watch_more(
        self,
        memory: VideoMemory,
        frames: Any,
        seconds: Seconds,
        *,
        progress: Progress | None = None,
        timings: dict[str, float] | None = None,
    ) -> VideoMemory:
        """Extend a memory by the frames that follow, as for a live video. Returns a new memory; the old one is unchanged.

        The last group and the last stride, if incomplete, are computed again, so that the result equals watching everything
        at once: bit for bit in float32 as long as strides begin at the same groups and no timestamp gets more tokens than
        those before (as at 1,000 s), otherwise up to rounding.

        Args:
          memory: a memory made by this model.
          frames: uint8 [F, px, px, 3], with px = `config.vision.image_size`.
          seconds: times of the frames [F], not decreasing, after the memory's last frame.
          progress, timings: as in `watch`.

        Raises:
          RequestError: the memory was made by another model, the frames have another shape, or the times do not follow.
        """
        with self.precision():
            return ingest.watch_more(self, memory, frames, seconds, Callbacks(progress, timings))

    @overload
    def ask(
        self,
        memory: VideoMemory,
        question: str,
        *,
        history: Sequence[Answer] = (),
        choices: Sequence[str] | None = None,
        **keywords: Any,
    ) -> Answer: ...

    @overload
    def ask(
        self,
        memory: VideoMemory,
        question: Sequence[str],
        *,
        history: Sequence[Answer] = (),
        choices: Sequence[Sequence[str]] | None = None,
        **keywords: Any,
    ) -> list[Answer]: ...

    @takes(AskOptions)
    def ask(
        self,
        memory: VideoMemory,
        question: str | Sequence[str],
        *,
        history: Sequence[Answer] = (),
        choices: Sequence[Any] | None = None,
        **keywords: Any,
    ) -> Answer | list[Answer]:
        """Ask a memory one question, or a list of questions.

        A list returns a list. Each question is answered as if it were asked alone, but in batches that read shared keys
        once. If the memory is on disk (`VideoMemory.load`), only the chunks that become dense are read from the file.

        Args:
          memory: a memory made by this model.
          question: one question or several.
          {options}
          history: previous answers about the same memory, oldest first: the question continues that conversation.
          choices: answer with the most likely of these texts instead of generating one; for a list of questions, a list
            of texts for each. `Answer.choices` has their scores. See `likelihood.choose_many`.

        A toy model (nano) also answers questions that it was not trained on: `Answer.doubts` then says what is
        unfamiliar, and a ToyModelWarning is issued.

        `relevance` may also be a function: (int32 token ids of the question [N], memory) → one score for each of
        the `memory.layout.chunks(chunk_size)` chunks.

        Raises:
          RequestError: an option is out of range, a question is empty, or another model made the memory.
        """
        options = AskOptions(**keywords)
        with self.precision():
            single = isinstance(question, str)
            questions = [question] if single else question
            if choices is None:
                answers = generate.ask_many(self, memory, questions, options, history)
            else:
                each = [choices] if single else choices
                answers = likelihood.choose_many(self, memory, questions, each, options, history)
            return answers[0] if single else answers

    @takes(AskOptions)
    def stream(
        self, memory: VideoMemory, question: str, *, history: Sequence[Answer] = (), **keywords: Any
    ) -> AnswerStream:
        """Ask a memory one question, and get the answer in pieces of text while it is decoded.

            stream = model.stream(memory, "Who opens the door?")
            for piece in stream:
                print(piece, end="", flush=True)
            stream.answer  # as from `ask`

        The pieces join to the text of `ask`. A stream that is not read to its end costs nothing more.

        Args:
          memory: a memory made by this model.
          question: one question.
          {options}
          history: as in `ask`.

        Raises:
          RequestError: as in `ask`, before anything is computed.
        """
        return streaming.stream(self, memory, question, AskOptions(**keywords), history)

    def answer_all(
        self,
        jobs: Iterable[Job],
        *,
        watch: Mapping[str, Any] | None = None,
        ask: Mapping[str, Any] | None = None,
        memories: str | Path | None = None,
    ) -> Iterator[JobResult]:
        """Answer a queue of videos with their questions, in order. While one video is processed, the next one is read.

        A question that cannot be asked (it is empty or too long) has a `RequestError` in the place of its answer. A job that
        fails (its video cannot be read, its memory would not fit, no question can be asked) yields a `JobResult`
        with `error` set, and the queue goes on.

        Args:
          jobs: consumed one job ahead.
          watch: keywords of `watch` that are fields of `options.WatchOptions`, for all videos.
          ask: keywords of `ask` that are fields of `options.AskOptions`, for all questions.
          memories: a folder, made if it is missing, or its address for fsspec, such as "s3://bucket/memories". Memories of
            video files are kept there; one that is there is asked without watching again, and one that was interrupted is
            completed, at an address only on the same machine.

        Raises:
          RequestError: an option is out of range, the folder cannot be made, or a package for its address is missing.
        """
        for name, given, kind in (
            ("jobs", jobs, Iterable),
            ("watch", watch or {}, Mapping),
            ("ask", ask or {}, Mapping),
        ):
            if not isinstance(given, kind):
                raise RequestError(f"{name} must be {kind.__name__}, not {type(given).__name__}")
        try:
            options = WatchOptions(**(watch or {})), AskOptions(**(ask or {}))
        except TypeError as error:  # an unknown name
            raise RequestError(f"watch or ask: {first_line(error)}") from error
        return batch.run(self, jobs, *options, None if memories is None else open_folder(memories))


def load(
    name: str | Path = "nano",
    dtype: Any = None,
    *,
    weights: str | None = None,
    attention: str = "auto",
    progress: Progress | None = None,
    compile_cache: bool = True,
    mesh: str | None = None,
) -> Model:
    """Load a model.

    Args:
      name: "nano" (inside the package); a checkpoint directory in the original's Hugging Face layout or in our native
        one (`vxl2 convert`); or a name on the Hugging Face hub such as "BAAI/Video-XL-2", which is downloaded once.
      dtype: float32, bfloat16 or float16. None: float32 on CPU, float16 on NVIDIA cards without bfloat16 (T4 and older),
        bfloat16 elsewhere.
      weights: wide (in `dtype`); int8; int4; w8a8 (int8, with most activations in 8 bits); or auto: the widest that leaves
        room for a video of 1,024 frames on an accelerator, wide on a CPU. None: as the checkpoint is stored; those of the
        original are wide. See `models.quantised`.
      attention: the attention kernel: tpu, hopper, ampere, reference, or auto (the best one that runs here and agrees
        with the reference on a small problem). On a CPU the others are interpreted: slow, for checking.
      progress: called with (tensors done, total tensors).
      compile_cache: let JAX keep compiled programs on disk for the next process; see `compile_cache.enable`. It applies
        to the whole process. A folder that JAX is configured to use is kept.
      mesh: "model=N" shards the language model and its caches over N devices (see `tensor_parallel`), "sequence=N" the
        video (see `sequence_parallel`); both with a comma between. Weights are loaded straight into their shards. None:
        one device.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged or does not fit.
      RequestError: an argument is of another kind, or the attention kernel cannot run here.
    """
    runtime = load_runtime(
        name,
        dtype,
        weights=weights,
        attention=attention,
        progress=progress,
        compile_cache=compile_cache,
        mesh=mesh,
    )
    return Model(**vars(runtime))
