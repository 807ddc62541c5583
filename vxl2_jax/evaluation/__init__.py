"""Benchmarks with the original's prompts, answer parsing and scores. Plain Python: nothing here needs a model.

    from vxl2_jax import evaluation

    benchmark = evaluation.get_benchmark("video_mme")
    rows = evaluation.read_docs(benchmark, "annotations.json")
    verdicts = [evaluation.judge(benchmark, row, answer(benchmark.prompt(row))) for row in rows]
    print(evaluation.total(verdicts).as_data(), evaluation.grouped(verdicts))

A benchmark is a module with these members:

    NAME              its key in BENCHMARKS
    GROUPS            annotation fields by which scores are grouped
    row(doc)          parses a raw annotation row into a Row
    prompt(row)       the prompt (`text.prompt` later rewrites clock times in it)
    read(response)    the option letter that a response names, "" if it names none
    score(row, response)  whether that letter is correct
    counts(response)  whether the response counts in the denominator

To add one, write such a module, list it in BENCHMARKS, and give it entries in `settings.RELEASED` (the keys are those of
the other benchmarks), `settings.MAX_NEW_TOKENS` and `data.ANNOTATION_FILES`. If its published files differ from what
`row` parses, add a function to `published._CONVERTERS`.
"""

from pathlib import Path
from types import ModuleType

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import longvideobench, lvbench, mlvu, published, video_mme
from vxl2_jax.evaluation.files import read_rows
from vxl2_jax.evaluation.responses import read_responses
from vxl2_jax.evaluation.rows import Row, locate_errors
from vxl2_jax.evaluation.scores import Score, Verdict, grouped, judge, total
from vxl2_jax.evaluation.settings import MAX_NEW_TOKENS, RELEASED, PublishedSetting

BENCHMARKS: dict[str, ModuleType] = {module.NAME: module for module in (mlvu, video_mme, longvideobench, lvbench)}

__all__ = [
    "BENCHMARKS",
    "MAX_NEW_TOKENS",
    "RELEASED",
    "PublishedSetting",
    "Row",
    "Score",
    "Verdict",
    "get_benchmark",
    "grouped",
    "judge",
    "read_docs",
    "read_responses",
    "read_valid_docs",
    "total",
]


def get_benchmark(name: str) -> ModuleType:
    """The benchmark with this name. Raises RequestError for an unknown name."""
    if name not in BENCHMARKS:
        raise RequestError(f"unknown benchmark {name!r}: choose {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def read_docs(benchmark: ModuleType, path: str | Path) -> list[Row]:
    """Read a file of annotation rows, in the benchmark's own format or in that of its lmms-eval task.

    Raises RequestError with the number of the row and the missing or invalid key.
    """
    rows, problems = read_valid_docs(benchmark, path)
    if problems:
        raise RequestError(problems[0])
    return rows


def read_valid_docs(benchmark: ModuleType, path: str | Path) -> tuple[list[Row], list[str]]:
    """The same for a file with invalid rows: (the valid ones, what is wrong with each of the others).

    Raises RequestError for a file that cannot be read.
    """
    rows, problems = [], []
    for number, doc in enumerate(read_rows(path), 1):
        try:
            if isinstance(doc, RequestError):
                raise doc
            with locate_errors(str(path), number):
                rows += [benchmark.row(row) for row in published.to_task_rows(benchmark.NAME, doc)]
        except RequestError as error:
            problems.append(str(error))
    return rows, problems
