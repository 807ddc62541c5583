"""A stand-in for a model: it answers with a letter derived from the prompt and looks at no video.

Run as a script it evaluates an MLVU folder, and can be told to kill itself in the middle of writing a record:

    python standin.py DATA OUT [RECORDS_BEFORE_THE_KILL]
"""

import hashlib
import os
import signal
import sys
from pathlib import Path

import jax.numpy as jnp

from pallas_kernels.attention import KVCache
from vxl2_jax import evaluation
from vxl2_jax.answer import Answer
from vxl2_jax.api import Model
from vxl2_jax.batch import JobResult
from vxl2_jax.config import nano
from vxl2_jax.errors import VideoError
from vxl2_jax.evaluation import data, runner
from vxl2_jax.evaluation.benchmark_run import BenchmarkRun
from vxl2_jax.evaluation.settings import released
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.memory import VideoMemory
from vxl2_jax.prefill import DenseCache

PARTIAL_RECORD = '{"index": 3, "vid'


class UnloadedModel(Model):
    """A model without parameters; its subclasses answer."""

    name, fingerprint, dtype, attention = "folder/stand-in", "0123", jnp.dtype("float32"), "none"
    config = nano(8)

    def __init__(self) -> None:
        self.prompts: list[str] = []


class StandIn(UnloadedModel):
    """Videos with the content b"broken" cannot be watched; others have one frame per byte."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: list[str] = []

    def answer_all(self, jobs, *, watch, ask):
        for job in jobs:
            path = Path(job.video)
            if path.read_bytes() == b"broken":
                yield JobResult(job, error=VideoError(f"{path.name}: cannot be read"))
                continue
            self.watched.append(path.name)
            self.prompts += job.questions
            memory = empty_memory(path.stat().st_size, PrefillRule(watch["block_size"], watch["prev_blocks"]))
            answers = tuple(self._answer(text, memory.layout.length) for text in job.questions)
            yield JobResult(job, answers, memory, {"read": 0.5})

    def _answer(self, text, length):
        letter = "ABCD"[hashlib.sha256(text.encode()).digest()[0] % 4]
        return Answer(text, f"{letter})", (1,), True, (), length // 2, length, {"decode": 1.0}, batch=2)


def empty_memory(frames: int, rule: PrefillRule) -> VideoMemory:
    """A memory of one frame per second without keys and values."""
    cache = KVCache(jnp.zeros((1, 1, 0, 1)), jnp.zeros((1, 1, 0, 1)))
    return VideoMemory(
        DenseCache(cache, cache),
        cache,
        Layout(14, (7,) * -(-frames // 4), 9),
        rule,
        compression=4,
        seconds=(),
        end_s=float(frames),
        frames=frames,
        rope_theta=1e6,
    )


def prepared(folder: Path, mode: str = "chunked", **changed) -> BenchmarkRun:
    """A run over an MLVU folder."""
    benchmark = evaluation.get_benchmark("mlvu")
    watch, ask = released("mlvu", mode)
    watch |= {key: value for key, value in changed.items() if key in watch}
    ask |= {key: value for key, value in changed.items() if key in ask}
    return BenchmarkRun("mlvu", data.read(benchmark, folder), mode, watch, ask)


if __name__ == "__main__":
    folder, out, *rest = sys.argv[1:]
    write, records_left = runner.append, [int(rest[0])] if rest else []

    def append(file, record):
        if records_left:
            records_left[0] -= 1
            if records_left[0] < 0:
                file.write(PARTIAL_RECORD)
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        write(file, record)

    runner.append = append
    runner.evaluate(prepared(Path(folder)), StandIn, Path(out))
