"""Shows how a benchmark's questions are put to the model, character for character as the original's evaluation did.

    python -m experiments.show_prompts --benchmark video_mme --docs annotations.json

The file, plain or gzipped, holds a JSON list of raw annotation rows; the fields they need are told in
vxl2_jax/evaluation/<benchmark>.py. Prints one JSON list of prompts. The words of the conversation around a prompt,
and clock times rewritten to seconds, come later: see vxl2_jax/text/prompt.py. Exit code: 0, or 2 for unusable
input, with one line saying why.
"""

from __future__ import annotations

import json
import sys

from absl import flags

from experiments import start
from vxl2_jax import evaluation
from vxl2_jax.errors import RequestError, Vxl2Error


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("benchmark", None, f"One of {', '.join(evaluation.BENCHMARKS)}.")
    flags.DEFINE_string("docs", None, "File of annotation rows, plain or gzipped.")


def main(argv: list[str]) -> None:
    try:
        if len(argv) > 1 or not flags.FLAGS.benchmark or not flags.FLAGS.docs:
            raise RequestError("give --benchmark B --docs FILE, and no other arguments")
        benchmark = evaluation.get_benchmark(flags.FLAGS.benchmark)
        prompts = [benchmark.prompt(row) for row in evaluation.read_docs(benchmark, flags.FLAGS.docs)]
    except Vxl2Error as error:
        print(f"show_prompts: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(prompts))


if __name__ == "__main__":
    start.run(main, define_flags)
