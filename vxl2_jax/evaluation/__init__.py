"""Benchmarks as the original's evaluation runs them: prompts, reading of answers, scores. Plain Python, no model.

    from vxl2_jax import evaluation

    benchmark = evaluation.named("video_mme")
    rows = evaluation.read_docs(benchmark, "annotations.json")
    verdicts = [evaluation.judge(benchmark, row, answer(benchmark.prompt(row))) for row in rows]
    print(evaluation.total(verdicts).as_data(), evaluation.grouped(verdicts))

A benchmark is a module of one shape:

    NAME              as in BENCHMARKS
    GROUPS            the annotation fields that scores are split by
    row(doc)          a raw annotation row, typed
    prompt(row)       the question as the model is asked it (clock times are rewritten later, by `text.prompt`)
    read(response)    the option letter that a response names, "" for none
    score(row, response)  whether that is the right one
    counts(response)  whether the response belongs in the denominator
"""

from pathlib import Path
from types import ModuleType

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import longvideobench, lvbench, mlvu, published, video_mme
from vxl2_jax.evaluation.files import read_rows
from vxl2_jax.evaluation.responses import read_responses
from vxl2_jax.evaluation.rows import Row, in_row
from vxl2_jax.evaluation.scores import Score, Verdict, grouped, judge, total
from vxl2_jax.evaluation.settings import MAX_NEW_TOKENS, RELEASED, PublishedSetting

BENCHMARKS: dict[str, ModuleType] = {module.NAME: module for module in (mlvu, video_mme, longvideobench, lvbench)}

__all__ = [
    "BENCHMARKS",
    "MAX_NEW_TOKENS",
    "RELEASED",
    "Row",
    "Score",
    "PublishedSetting",
    "Verdict",
    "grouped",
    "judge",
    "named",
    "read_docs",
    "read_responses",
    "total",
]


def named(name: str) -> ModuleType:
    """The benchmark called `name`; raises RequestError for a name that is none."""
    if name not in BENCHMARKS:
        raise RequestError(f"{name!r} is no benchmark; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def read_docs(benchmark: ModuleType, path: str | Path) -> list[Row]:
    """The annotation rows of a file, typed. It may have the benchmark's own form or that of the lmms-eval task.

    Raises RequestError naming the row, and the key that it lacks.
    """
    rows = []
    for number, doc in enumerate(read_rows(path), 1):
        with in_row(str(path), number):
            rows += [benchmark.row(form) for form in published.forms(benchmark.NAME, doc)]
    return rows
