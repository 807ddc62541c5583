"""Files of recorded responses, to be scored without a model."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.files import read_objects
from vxl2_jax.evaluation.rows import Row, groups_of, locate_errors, option_letter, value

RUN_KEYS = ("variant", "subset")
"""Keys of a response that identify its run."""


def read_responses(benchmark: ModuleType, path: str | Path) -> tuple[list[tuple[Row, str]], int]:
    """Read the recorded responses to one benchmark.

    A line has `response`, `answer` (the option letter) and optionally the benchmark's annotation fields, `benchmark`,
    `variant` and `subset`. Rows are grouped by those fields and by "variant/subset".

    Returns:
      (row, response) pairs, and how many lines were left out because they belong to other benchmarks.

    Raises RequestError with the number of the row and the missing or invalid key.
    """
    lines = read_objects(path)
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.get("benchmark", benchmark.NAME) == benchmark.NAME:
            with locate_errors(str(path), number):
                pairs.append((_row(benchmark, line), value(line, "response")))
    if not pairs:
        others = ", ".join(sorted({str(line["benchmark"]) for line in lines}))
        raise RequestError(
            f"{path}: no row of {benchmark.NAME}, only of {others:.200}; name that benchmark or another file"
        )
    return pairs, len(lines) - len(pairs)


def _row(benchmark: ModuleType, line: dict[str, Any]) -> Row:
    groups = groups_of(line, (*benchmark.GROUPS, *RUN_KEYS))
    if all(key in groups for key in RUN_KEYS):
        groups["/".join(RUN_KEYS)] = ("/".join(groups[key][0] for key in RUN_KEYS),)
    value(line, "answer")  # recorded responses are there to be scored
    return Row(answer=option_letter(line), groups=groups)
