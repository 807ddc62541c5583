"""Files that appear under their name only when they are complete."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator

from vxl2_jax.errors import RequestError


@contextlib.contextmanager
def atomic(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path that is renamed to `path` when the block ends, and removed when it raises.

    Raises RequestError if the block raises OSError.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise RequestError(f"{path}: cannot be written ({error.strerror}); choose another path") from error
    finally:
        part.unlink(missing_ok=True)


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file atomically."""
    with atomic(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def as_json(value: object) -> str:
    """Indented JSON text."""
    return json.dumps(value, indent=1) + "\n"


def as_jsonl(rows: list[dict]) -> str:
    """One line of JSON per row."""
    return "".join(json.dumps(row) + "\n" for row in rows)
