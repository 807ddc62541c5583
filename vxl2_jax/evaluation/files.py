"""Files of JSON objects: a JSON list or one object per line, plain or gzipped, or a parquet table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vxl2_jax.errors import RequestError, first_line, shown
from vxl2_jax.files import ANNOTATIONS, TABLE, open_regular, parse_json, read_text, text_lines

MAX_ROWS = 200_000
"""Of a parquet table."""


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
    rows: list[Any] = []
    try:
        with open_regular(path, TABLE) as file:
            table = parquet.ParquetFile(file)
            columns = [field.name for field in table.schema_arrow if _is_plain(field.type)]
            if len(set(columns)) < len(columns):
                TABLE.fail(path, "has several columns of the same name")
            unpacked = sum(table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups))
            if table.metadata.num_rows > MAX_ROWS or unpacked > TABLE.max_bytes:
                TABLE.fail(
                    path, f"more than {MAX_ROWS:,} rows or {TABLE.max_bytes:,} bytes, the limits for such a file"
                )
            unpacked = 0  # counted again: a text that is repeated is stored once
            for batch in map(_repeat_texts, table.iter_batches(64, columns=columns)):
                unpacked += batch.nbytes
                if unpacked > TABLE.max_bytes:
                    TABLE.fail(path, f"unpacks to more than {TABLE.max_bytes:,} bytes, the limit for such a file")
                rows += [_row(path, len(rows) + i + 1, batch.slice(i, 1)) for i in range(len(batch))]
    except (OSError, ValueError, OverflowError, ArrowException) as error:
        TABLE.fail(path, f"cannot be read ({first_line(error)})", error)
    return rows


def _is_plain(kind: Any) -> bool:
    """Whether values of an Arrow type are what JSON has too. Others (pictures, dates) are no annotations."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    if kind.num_fields:
        return not types.is_map(kind) and all(_is_plain(kind.field(i).type) for i in range(kind.num_fields))
    text = types.is_string(kind) or types.is_large_string(kind)
    return text or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)


def _repeat_texts(batch: Any) -> Any:
    """A batch of Arrow without dictionaries, so that its size is that of its rows."""
    for place, column in enumerate(batch.columns):
        if hasattr(column, "dictionary_decode"):
            batch = batch.set_column(place, batch.schema.names[place], column.dictionary_decode())
    return batch


def _row(path: Path, number: int, batch: Any) -> dict[str, Any] | RequestError:
    """The only row of a batch of Arrow; an error if a text in it is not UTF-8."""
    try:
        return batch.to_pylist()[0]
    except ValueError as error:
        return RequestError(f"{path}: row {number}: cannot be read ({first_line(error)})")
