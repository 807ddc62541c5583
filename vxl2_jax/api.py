"""The public interface: load a model, watch a video once, ask it many times."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pallas_kernels import attention as kernels
from vxl2_jax import batch as queue
from vxl2_jax import generate, hardware, ingest
from vxl2_jax.batch import Job, JobResult
from vxl2_jax.checkpoints import fetch
from vxl2_jax.errors import RequestError
from vxl2_jax.generate import Answer
from vxl2_jax.layout import PrefillRule
from vxl2_jax.memory import VideoMemory
from vxl2_jax.runtime import Runtime, fingerprint_of
from vxl2_jax.text.tokenizer import Tokenizer


class Model(Runtime):
    """A loaded model: watch a video once, ask its memory many times. For the data it holds see `runtime.Runtime`."""

    def watch(
        self,
        video: str | Path | ingest.Frames | ingest.FrameSource,
        *,
        fps: float = 1.0,
        max_frames: int | None = None,
        max_fps: float = 4.0,
        block_size: int = 4,
        prev_blocks: int | None = 3,
        compression: int = 4,
        out: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        timings: dict[str, float] | None = None,
    ) -> VideoMemory:
        """Watch a video and keep its memory.

        Args:
          video: a file PyAV reads, an image, a folder of images; or (frames uint8 [F, image, image, 3],
            their seconds [F]); or a source that is opened already.
          fps, max_frames, max_fps: the sampling rule, see `video.sampling`.
          block_size, prev_blocks: chunk-based pre-filling, see `layout.PrefillRule`; prev_blocks None is dense.
          compression: visual tokens pooled into one in the sparse level.
          out: a memory file to write while watching. If watching is cut off, the same call goes on where it was;
            if the file is already there and holds this very memory, it is opened instead.
          progress: called with (frames done, frames in all).
          timings: a dict that receives seconds per stage: read (waiting for frames), vision, prefill, write (waiting
            for the memory file), compile (compiling, which the other stages then do not count).

        Raises VideoError for what cannot be read; RequestError for options out of range, for a memory file that
        cannot be written or is another one; TooLongError, before watching, for a video whose memory would not fit.
        """
        sampling = {"fps": fps, "max_frames": max_frames, "max_fps": max_fps}
        with self.precision():
            return ingest.watch(
                self,
                video,
                sampling=sampling,
                rule=PrefillRule(block_size, prev_blocks),
                compression=compression,
                out=out,
                report=ingest.Callbacks(progress, timings),
            )

    def watch_more(
        self,
        memory: VideoMemory,
        frames: np.ndarray,
        seconds: Sequence[float],
        *,
        progress: Callable[[int, int], None] | None = None,
        timings: dict[str, float] | None = None,
    ) -> VideoMemory:
        """Extend a memory by the frames that follow, as of a live video: a new memory; the old one stays as it is.

        What a last, incomplete group and stride had written early is done again, so that the result is that of
        watching everything at once: in float32 bit for bit as long as the strides begin at the same groups and
        timestamps do not become longer (past 1,000 s, say), else up to rounding.

        Args:
          frames: uint8 [F, image, image, 3], image being the model's `config.vision.image_size`.
          seconds: [F], ascending, after the memory's last frame.
          progress, timings: as in `watch`.

        Raises RequestError for another model's memory, frames of another shape, or seconds that do not follow.
        """
        with self.precision():
            return ingest.watch_more(self, memory, frames, seconds, ingest.Callbacks(progress, timings))

    def ask(
        self,
        memory: VideoMemory,
        question: str | Sequence[str],
        *,
        relevance: str | Callable[[np.ndarray, VideoMemory], Sequence[float]] = "attention",
        top_k: int | None = 4,
        chunk_size: int = 4,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        history: Sequence[Answer] = (),
    ) -> Answer | list[Answer]:
        """Ask a memory one question, or several: a list gives a list, each answered as if it were asked alone, in
        batches that share what they read.

        Of a memory on disk (`VideoMemory.load`) the chunks that are loaded dense are read from there.

        Args:
          relevance: "attention", "mass", "uniform", "random", "recent", "oracle:FILE" (see `vxl2_jax.relevance`), or a
            function (question token ids, memory) → a score per chunk.
          top_k: interior chunks loaded dense beside the first and the last; None loads the whole cache dense.
          chunk_size: groups per chunk.
          temperature, top_p, seed: 0 is greedy; else tokens are drawn, the seed fixing the draw.
          history: earlier answers about the same memory, oldest first.

        Raises RequestError for options out of range, an empty question, or another model's memory.
        """
        options = generate.AskOptions(relevance, top_k, chunk_size, max_new_tokens, temperature, top_p, seed)
        with self.precision():
            if isinstance(question, str):
                return generate.ask(self, memory, question, options, history)
            return generate.ask_many(self, memory, question, options, history)

    def answer_all(
        self, jobs: Iterable[Job], *, watch: Mapping[str, Any] | None = None, ask: Mapping[str, Any] | None = None
    ) -> Iterator[JobResult]:
        """Answer a queue of videos with their questions, in order; the next video is read meanwhile.

        A video that cannot be read, or whose memory would not fit, gives a `JobResult` with its error; the queue goes on.

        Args:
          jobs: taken one ahead of what is being answered.
          watch, ask: options of `watch` (but `out`, `progress` and `timings`) and of `ask`, the same for all.

        Raises RequestError for options out of range.
        """
        return queue.run(self, jobs, watch or {}, ask or {})


def load(
    name: str | Path = "nano",
    dtype: Any = None,
    *,
    attention: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Load a model.

    Args:
      name: "nano" (inside the package); a directory, of the original's Hugging Face layout or our native
        one (`vxl2 convert`); or a name on the Hugging Face hub such as "BAAI/Video-XL-2", which is
        downloaded once.
      dtype: float32, bfloat16 or float16; None is float32 on CPU, float16 on NVIDIA cards without bfloat16
        (T4 and older) and bfloat16 elsewhere.
      attention: the attention kernel: tpu, hopper, ampere, reference, or auto (the best one that runs here).
        On a CPU a kernel named is interpreted: slow, for checking. What auto takes has to agree with the
        reference on a small problem first.
      progress: called with (tensors done, tensors in all).

    Raises CheckpointError when there is no such checkpoint, or it is damaged or does not fit; RequestError for
    an attention kernel that cannot run here.
    """
    device = jax.devices()[0]
    dtype = dtype or hardware.default_dtype(device)
    _chosen(
        kernels.choose_kernel, attention, dtype, _USUAL_WIDTH
    )  # a mistake is told before a large model is loaded for nothing
    directory, (config, params) = fetch.load(name, dtype, progress)
    kernel, reason = _chosen(kernels.select_kernel, attention, dtype, config.language.head_width)
    logging.getLogger("vxl2_jax").info("attention: %s", reason)
    return Model(
        str(name),
        config,
        params,
        Tokenizer.read(directory),
        fingerprint_of(config, params),
        kernel,
        reason,
        hardware.sizes_for(device),
    )


_USUAL_WIDTH = 128


def _chosen(choose: Callable[..., kernels.KernelChoice], name: str, dtype: Any, width: int) -> kernels.KernelChoice:
    try:
        return choose(name, dtype=dtype, width=width, device=jax.devices()[0])
    except ValueError as error:
        raise RequestError(str(error)) from error
