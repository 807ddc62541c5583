"""Scores recorded responses to a benchmark as the original's evaluation scored them.

    python -m experiments.score_responses --benchmark lvbench --responses responses.jsonl.gz

A line of the file, plain or gzipped, is one response:

    {"benchmark": "lvbench", "variant": "pure", "subset": "tv", "response": "B", "answer": "C", "question_type": […]}

`response` and `answer` must be there; lines of another benchmark are left out. Prints one JSON object:
{"correct", "total", "accuracy" (percent), "by": {annotation field: {its value: the same three}}}; with --rows
also "rows": 1 or 0 for each response, in order. Exit code: 0, or 2 for unusable input, with one line saying why.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from absl import flags

from experiments import start
from vxl2_jax import evaluation
from vxl2_jax.errors import RequestError, Vxl2Error


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("benchmark", None, f"One of {', '.join(evaluation.BENCHMARKS)}.")
    flags.DEFINE_string("responses", None, "File of responses, one JSON object a line, plain or gzipped.")
    flags.DEFINE_boolean("rows", False, "Print each row's score, too.")
    flags.DEFINE_boolean(
        "mended",
        False,
        "Video-MME: read answers with the whole list of prefixes, two pairs of which the original joined by mistake.",
    )


def report(name: str, path: str, rows: bool, mended: bool) -> dict[str, Any]:
    """What is printed. Raises RequestError."""
    benchmark = evaluation.get_benchmark(name)
    if mended and not hasattr(benchmark, "read_corrected"):
        raise RequestError(f"--mended is for video_mme; leave it out for {name}, which has nothing to mend")
    pairs, left_out = evaluation.read_responses(benchmark, path)
    if left_out:
        print(f"score_responses: left out {left_out} rows of other benchmarks", file=sys.stderr)
    read = benchmark.read_corrected if mended else benchmark.read
    verdicts = [evaluation.judge(benchmark, row, response, read) for row, response in pairs]
    if silent := sum(not verdict.named for verdict in verdicts if verdict.counted):
        lots = "; the original draws an option at random instead" if name == "longvideobench" else ""
        print(f"score_responses: {silent} responses name no option and count as wrong{lots}", file=sys.stderr)
    by = {
        field: {value: score.as_data() for value, score in scores.items()}
        for field, scores in evaluation.grouped(verdicts).items()
    }
    scores = {"rows": [int(verdict.correct) for verdict in verdicts]} if rows else {}
    return {**evaluation.total(verdicts).as_data(), "by": by, **scores}


def main(argv: list[str]) -> None:
    try:
        if len(argv) > 1 or not flags.FLAGS.benchmark or not flags.FLAGS.responses:
            raise RequestError("give --benchmark B --responses FILE, and no other arguments")
        found = report(flags.FLAGS.benchmark, flags.FLAGS.responses, flags.FLAGS.rows, flags.FLAGS.mended)
    except Vxl2Error as error:
        print(f"score_responses: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(found))


if __name__ == "__main__":
    start.run(main, define_flags)
