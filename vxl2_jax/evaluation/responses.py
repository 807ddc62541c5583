"""Files of recorded responses, to be scored without a model."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.files import read_rows
from vxl2_jax.evaluation.rows import Row, groups_of, in_row, option_letter, value

RUN = ("variant", "subset")
"""Keys of a response that say which run it is of."""


def read_responses(benchmark: ModuleType, path: str | Path) -> tuple[list[tuple[Row, str]], int]:
    """The file's (row, response) pairs of one benchmark, and how many rows of others were left out.

    A line has `response`, `answer` (the option letter) and, as far as they are known, the benchmark's annotation
    fields, `benchmark`, `variant` and `subset`. Rows are grouped by those, and by "variant/subset".
    Raises RequestError naming the row, and the key that it lacks.
    """
    found = read_rows(path)
    pairs = []
    for number, line in enumerate(found, 1):
        if line.get("benchmark", benchmark.NAME) == benchmark.NAME:
            with in_row(str(path), number):
                pairs.append((_row(benchmark, line), value(line, "response")))
    if not pairs:
        others = ", ".join(sorted({str(line["benchmark"]) for line in found}))
        raise RequestError(f"{path}: no row of {benchmark.NAME}, only of {others}; name that benchmark or another file")
    return pairs, len(found) - len(pairs)


def _row(benchmark: ModuleType, line: dict[str, Any]) -> Row:
    groups = groups_of(line, (*benchmark.GROUPS, *RUN))
    if all(key in groups for key in RUN):
        groups["/".join(RUN)] = ("/".join(groups[key][0] for key in RUN),)
    return Row(answer=option_letter(line), groups=groups)
