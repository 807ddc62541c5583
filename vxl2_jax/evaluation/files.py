"""Files of JSON objects: a JSON list or one object per line, plain or gzipped, or a parquet table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vxl2_jax.errors import RequestError, first_line, shown
from vxl2_jax.files import ANNOTATIONS, TABLE, open_regular, parse_json, read_text, text_lines


def read_rows(path: str | Path) -> list[dict[str, Any] | RequestError]:
    """The objects in a file; in the place of a row that is no object, an error that names it.

    Raises RequestError for a file that cannot be read or holds no rows.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        found: list[Any] = _read_parquet(path)
    else:
        text = read_text(path, ANNOTATIONS)
        found = parse_json(text, path, ANNOTATIONS) if text.lstrip().startswith("[") else _parse_lines(path, text)
    if not found:
        raise RequestError(f"{path}: no rows in it; give a JSON list of objects, or one object per line")
    return [
        row
        if isinstance(row, (dict, RequestError))
        else RequestError(f"{path}: row {number} must be a JSON object, not {shown(row)}")
        for number, row in enumerate(found, 1)
    ]


def read_objects(path: str | Path) -> list[dict[str, Any]]:
    """The objects in a file. Raises RequestError with the file, the place and the expected content."""
    rows = []
    for row in read_rows(path):
        if isinstance(row, RequestError):
            raise row
        rows.append(row)
    return rows


def _parse_lines(path: Path, text: str) -> list[Any]:
    rows: list[Any] = []
    for number, line in text_lines(text):
        try:
            rows.append(parse_json(line, f"{path}, line {number}", ANNOTATIONS))
        except RequestError as error:
            rows.append(error)
    return rows


def _read_parquet(path: Path) -> list[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise RequestError(
            f"{path}: reading parquet needs the package pyarrow; pip install pyarrow, or give a JSON file"
        ) from error
    try:
        with open_regular(path, TABLE) as file:
            return parquet.read_table(file).to_pylist()
    except (OSError, ValueError, ArrowException) as error:
        TABLE.fail(path, f"cannot be read ({first_line(error)})", error)
