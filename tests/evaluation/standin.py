"""A stand-in for a model: it answers with a letter made of the prompt, without looking, and keeps to `Model`'s manners.

Run as a script it evaluates an MLVU folder; told to die, it is killed in the middle of writing a row:

    python standin.py DATA OUT PROCESS PROCESSES [ROWS_BEFORE_DYING]
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import jax.numpy as jnp

from vxl2_jax import evaluation
from vxl2_jax.batch import JobResult
from vxl2_jax.errors import VideoError
from vxl2_jax.evaluation import data, runner
from vxl2_jax.evaluation.settings import released
from vxl2_jax.generate import Answer
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.memory import VideoMemory


class StandIn:
    """Videos whose content is b"broken" cannot be watched; of others there are as many frames as bytes."""

    name, fingerprint, dtype, attention = "stand-in", "0123", jnp.dtype("float32"), "none"

    def __init__(self):
        self.watched, self.prompts = [], []

    def answer_all(self, jobs, *, watch, ask):
        for job in jobs:
            path = Path(job.video)
            if path.read_bytes() == b"broken":
                yield JobResult(job, error=VideoError(f"{path.name}: cannot be read"))
                continue
            self.watched.append(path.name)
            self.prompts += job.questions
            frames = path.stat().st_size
            layout = Layout(14, (7,) * -(-frames // 4), 9)
            memory = VideoMemory(
                None,
                None,
                layout,
                PrefillRule(watch["block_size"], watch["prev_blocks"]),
                compression=4,
                seconds=(),
                end_s=float(frames),
                frames=frames,
                rope_theta=1e6,
            )
            yield JobResult(
                job, tuple(self._answer(text, layout.length) for text in job.questions), memory, {"read": 0.5}
            )

    def _answer(self, text, length):
        letter = "ABCD"[hashlib.sha256(text.encode()).digest()[0] % 4]
        return Answer(text, f"{letter})", (1,), True, (), length // 2, length, {"decode": 1.0}, batch=2)


def prepared(folder: Path, mode: str = "chunked", **changed) -> runner.BenchmarkRun:
    """What is run about an MLVU folder."""
    benchmark = evaluation.named("mlvu")
    watch, ask = released("mlvu", mode)
    watch |= {key: value for key, value in changed.items() if key in watch}
    ask |= {key: value for key, value in changed.items() if key in ask}
    return runner.BenchmarkRun(benchmark, data.read(benchmark, folder), mode, watch, ask)


if __name__ == "__main__":
    folder, out, process, processes, *rest = sys.argv[1:]
    write, left = runner.append, [int(rest[0])] if rest else []

    def append(file, row):
        if left:
            left[0] -= 1
            if left[0] < 0:
                file.write('{"index": 3, "vid')
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)  # so that processes that run at the same time do
        write(file, row)

    runner.append = append
    runner.evaluate(prepared(Path(folder)), StandIn, Path(out), process=int(process), processes=int(processes))
