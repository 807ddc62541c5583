"""Files of JSON objects: a JSON list or one object per line, plain or gzipped, or a parquet table."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from vxl2_jax.errors import RequestError, first_line

_GZIP = b"\x1f\x8b"


def read_objects(path: str | Path) -> list[dict[str, Any]]:
    """The objects in a file. Raises RequestError with the file, the place and the expected content."""
    path = Path(path)
    if path.suffix == ".parquet":
        rows = _read_parquet(path)
    else:
        text = _read_text(path)
        rows = _parse_list(path, text) if text.lstrip().startswith("[") else _parse_lines(path, text)
    if not rows:
        raise RequestError(f"{path}: no rows in it; give a JSON list of objects, or one object per line")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise RequestError(f"{path}: row {number} must be a JSON object, not {row!r:.60}")
    return rows


def _read_parquet(path: Path) -> list[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise RequestError(
            f"{path}: reading parquet needs the package pyarrow; pip install pyarrow, or give a JSON file"
        ) from error
    try:
        return parquet.read_table(path).to_pylist()
    except FileNotFoundError as error:
        raise RequestError(f"{path}: no such file; give the path of a parquet file") from error
    except (OSError, ArrowException) as error:
        raise RequestError(f"{path}: cannot be read ({first_line(error)}); give a parquet file") from error


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise RequestError(f"{path}: no such file; give the path of a JSON file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(f"{path}: cannot be read ({error}); give a JSON file, plain or gzipped") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not UTF-8 text; give a JSON file, plain or gzipped") from error


def _parse_list(path: Path, text: str) -> list[Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise RequestError(f"{path}: not JSON at {place} ({error.msg}); fix it there") from error


def _parse_lines(path: Path, text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise RequestError(f"{path}: line {number} is not JSON ({error.msg}); it must be one object") from error
    return rows
