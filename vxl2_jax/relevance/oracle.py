"""Oracle files of the original: per question the units of its video that are loaded dense, ranked outside the model.

    {category: {"config": {"selected_topk", "selected_chunk_size", "compression", "relevance oracle"},
                "selected_unit_indices": {"<video file name>_<question>": [unit, …]}}}

A category that is null means plain dense pre-filling, and so does a question that no category lists.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vxl2_jax.errors import RequestError
from vxl2_jax.relevance.selection import chunk_of_unit

PREFIX = "oracle:"
"""Of a `relevance` that names such a file."""


@dataclass(frozen=True)
class OracleSelection:
    """What the files say of one question. `units` None: plain dense pre-fill, another memory. None elsewhere: not said."""

    category: str
    units: tuple[int, ...] | None
    chunk_size: int | None = None
    compression: int | None = None


@dataclass(frozen=True)
class Oracle:
    """Choices by key "<video file name>_<question>"; `plain` are the categories that are null, `source` names the files.

    most: by category, the most chunks that it chooses for a question (units, where it does not say how large chunks are).
    """

    source: str
    choices: Mapping[str, OracleSelection]
    plain: frozenset[str] = frozenset()
    most: Mapping[str, int] = field(default_factory=dict)

    def find(self, keys: Iterable[str]) -> OracleSelection | None:
        """What is said of the first of the keys that is listed; None if none is."""
        return next((self.choices[key] for key in keys if key in self.choices), None)


def read(path: str | Path) -> Oracle:
    """An oracle file, or all files *.json of a folder. Of a key in several categories the last one counts, as in the
    original.

    Raises RequestError for what is missing or not of the form, naming the place.
    """
    path = Path(path)
    choices: dict[str, OracleSelection] = {}
    plain: set[str] = set()
    for file in files(path):
        for category, content in _object(file, _loaded(file)).items():
            if content is None:
                plain.add(category)
            else:
                choices |= _choices(f"{file}: {category!r}", category, content)
    most: dict[str, int] = {}
    for choice in choices.values():
        units = choice.units or ()
        chunks = {chunk_of_unit(unit, choice.chunk_size) for unit in units} if choice.chunk_size else units
        most[choice.category] = max(most.get(choice.category, 0), len(chunks))
    return Oracle(str(path), choices, frozenset(plain), most)


def files(path: Path) -> list[Path]:
    """The oracle files that a path names: itself, or those of a folder. Raises RequestError if it holds none."""
    if not path.is_dir():
        return [path]
    if not (found := sorted(path.glob("*.json"))):
        raise RequestError(f"{path}: no oracle files (*.json) in this folder; give the one that holds them")
    return found


def _loaded(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(
            f"{file}: cannot read the oracle file ({error.strerror}); give a file or a folder of them"
        ) from error
    except ValueError as error:
        raise RequestError(f"{file}: not an oracle file of the original: no JSON ({error})") from error


def _choices(where: str, category: str, content: Any) -> dict[str, OracleSelection]:
    """All choices of a category; `where` names it in errors."""
    content = _object(where, content)
    if "selected_unit_indices" not in content:
        raise _foreign(where, "lacks 'selected_unit_indices'")
    config = _object(f"{where}, 'config'", content.get("config") or {})
    chunk_size, compression = (_size(where, config, name) for name in ("selected_chunk_size", "compression"))
    listed = _object(f"{where}, 'selected_unit_indices'", content["selected_unit_indices"])
    return {
        key: OracleSelection(category, _units(f"{where}, {key!r:.60}", units), chunk_size, compression)
        for key, units in listed.items()
    }


def _units(where: str, found: Any) -> tuple[int, ...] | None:
    if found is None:
        return None
    if not isinstance(found, list) or not all(type(unit) is int and unit >= 0 for unit in found):
        raise _foreign(where, f"units must be a list of whole numbers from 0, not {found!r:.60}")
    return tuple(found)


def _size(where: str, config: Mapping[str, Any], name: str) -> int | None:
    found = config.get(name)
    if found is not None and not (type(found) is int and found >= 1):
        raise _foreign(where, f"{name!r} must be a whole number from 1, or null, not {found!r:.60}")
    return found


def _object(where: str | Path, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise _foreign(where, f"must be an object, not {found!r:.60}")
    return found


def _foreign(where: str | Path, why: str) -> RequestError:
    return RequestError(f"{where}: {why}; give an oracle file in the original's form")
