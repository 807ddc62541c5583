"""The original's oracle files: per question the units of its video that are loaded dense, ranked outside the model.

    {category: {"config": {"selected_topk", "selected_chunk_size", "compression", "relevance oracle"},
                "selected_unit_indices": {"<video file name>_<question>": [unit, …]}}}

A category that is null means plain dense pre-filling, and so does a question that no category lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from vxl2_jax.errors import RequestError, shown
from vxl2_jax.files import ORACLE, read_json
from vxl2_jax.memory import VideoMemory
from vxl2_jax.relevance.selection import ChunkSelection, chunk_of_unit, chunks_of_units

PREFIX = "oracle:"
"""The start of a `relevance` that names such a file."""


@dataclass(frozen=True)
class OracleSelection:
    """What the files list for one question. units None: plain dense pre-filling, which is another memory. Otherwise
    None: not given."""

    category: str
    units: tuple[int, ...] | None
    chunk_size: int | None = None
    compression: int | None = None


@dataclass(frozen=True)
class Oracle:
    """Selections by key "<video file name>_<question>".

    Attributes:
      source: name of the files.
      choices: selections by key.
      plain: the categories that are null.
      max_chunks: by category, the most chunks that it selects for a question (units, where the chunk size is not given).
    """

    source: str
    choices: Mapping[str, OracleSelection]
    plain: frozenset[str] = frozenset()
    max_chunks: Mapping[str, int] = field(default_factory=dict)

    def find(self, keys: Iterable[str]) -> OracleSelection | None:
        """The selection of the first key that is listed; None if none is."""
        return next((self.choices[key] for key in keys if key in self.choices), None)

    def select(self, memory: VideoMemory, questions: Sequence[str], chunk_size: int) -> list[ChunkSelection]:
        """What each question about the memory's video reads.

        chunk_size: used where the files give none. Raises RequestError for a question that means plain dense
        pre-filling if the memory was pre-filled in blocks.
        """
        memories = {memory.compression: memory}

        def select_one(question: str) -> ChunkSelection:
            keys = [f"{name}_{question}" for name in (memory.video, PurePath(memory.video).stem)]
            listed = self.find(keys)
            if listed is None or listed.units is None:
                if memory.rule.prev_blocks is not None:
                    raise RequestError(
                        f"{self.source}: no units for {keys[0]!r}, which means plain dense pre-filling: "
                        "watch the video with prev_blocks none"
                    )
                return ChunkSelection(memory, chunk_size, np.ones(memory.layout.chunks(chunk_size), np.float32), None)
            compression, size = listed.compression or memory.compression, listed.chunk_size or chunk_size
            if compression not in memories:
                memories[compression] = memory.with_compression(compression)
            chunks = memory.layout.chunks(size)
            chosen = chunks_of_units(listed.units, chunks, size)
            scores = np.zeros(chunks, np.float32)
            scores[... if chosen is None else chosen - 1] = 1.0
            interior_capacity = min(self.max_chunks.get(listed.category, 0), max(chunks - 2, 0))
            return ChunkSelection(memories[compression], size, scores, chosen, interior_capacity)

        return [select_one(question) for question in questions]


def oracle_of(relevance: Any) -> Oracle | None:
    """The oracle that a `relevance` option means: an `Oracle`, or "oracle:FILE", which is read; else None."""
    if isinstance(relevance, str) and relevance.startswith(PREFIX):
        return read(relevance.removeprefix(PREFIX))
    return relevance if isinstance(relevance, Oracle) else None


def read(path: str | Path) -> Oracle:
    """Read an oracle file, or all files *.json of a folder. The last category that lists a key counts, as in the
    original.

    Raises RequestError for a missing or malformed file, naming the place.
    """
    path = Path(path)
    choices: dict[str, OracleSelection] = {}
    plain: set[str] = set()
    for file in files(path):
        for category, content in _object(file, read_json(file, ORACLE)).items():
            if content is None:
                plain.add(category)
            else:
                choices |= _selections(f"{file}: {shown(category)}", category, content)
    max_chunks: dict[str, int] = {}
    for choice in choices.values():
        units = choice.units or ()
        chunks = {chunk_of_unit(unit, choice.chunk_size) for unit in units} if choice.chunk_size else units
        max_chunks[choice.category] = max(max_chunks.get(choice.category, 0), len(chunks))
    return Oracle(str(path), choices, frozenset(plain), max_chunks)


def files(path: Path) -> list[Path]:
    """The oracle files that a path names: itself, or those of a folder. Raises RequestError if there are none."""
    if not path.is_dir():
        return [path]
    if not (found := sorted(path.glob("*.json"))):
        raise RequestError(f"{path}: no oracle files (*.json) in this folder; give the folder that holds them")
    return found


def _selections(where: str, category: str, content: Any) -> dict[str, OracleSelection]:
    """All selections of a category; `where` names it in errors."""
    content = _object(where, content)
    if "selected_unit_indices" not in content:
        raise _malformed(where, "lacks 'selected_unit_indices'")
    config = _object(f"{where}, 'config'", content.get("config") or {})
    chunk_size, compression = (_size(where, config, name) for name in ("selected_chunk_size", "compression"))
    listed = _object(f"{where}, 'selected_unit_indices'", content["selected_unit_indices"])
    return {
        key: OracleSelection(category, _units(f"{where}, {shown(key)}", units), chunk_size, compression)
        for key, units in listed.items()
    }


def _units(where: str, found: Any) -> tuple[int, ...] | None:
    if found is None:
        return None
    if not isinstance(found, list) or not all(type(unit) is int and unit >= 0 for unit in found):
        raise _malformed(where, f"units must be a list of whole numbers from 0, not {shown(found)}")
    return tuple(found)


def _size(where: str, config: Mapping[str, Any], name: str) -> int | None:
    found = config.get(name)
    if found is not None and not (type(found) is int and found >= 1):
        raise _malformed(where, f"{name!r} must be a whole number from 1, or null, not {shown(found)}")
    return found


def _object(where: str | Path, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise _malformed(where, f"must be an object, not {shown(found)}")
    return found


def _malformed(where: str | Path, why: str) -> RequestError:
    return RequestError(f"{where}: {why}; give an oracle file in the original's form")
