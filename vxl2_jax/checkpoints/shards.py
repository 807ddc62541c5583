"""The tensors of a checkpoint directory's safetensors files, read on demand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open

from vxl2_jax import files
from vxl2_jax.errors import CheckpointError

INDEX = "model.safetensors.index.json"
_DTYPES = ("F16", "BF16", "F32", "F64")


class _Index(msgspec.Struct, frozen=True):
    """model.safetensors.index.json: the name of the file that holds each tensor."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: cut by indexing with slices, which reads them. Float64, which JAX may not have, becomes float32."""

    shape: tuple[int, ...]
    cut: Any

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        found = self.cut[index]
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused
            return found.astype(np.float32) if found.dtype == np.float64 else found


class Shards:
    """The tensors of a directory by key. Raises CheckpointError if there are none, or a file is missing or damaged."""

    def __init__(self, directory: Path) -> None:
        self._file_of: dict[str, Any] = {}
        for file in _safetensors_files(directory):
            files.open_regular(file, files.WEIGHTS).close()
            try:
                handle = safe_open(file, "numpy")
            except (SafetensorError, OSError) as error:
                files.WEIGHTS.fail(file, f"not a readable safetensors file ({error})", error)
            keys = handle.keys()
            if repeated := next((key for key in keys if key in self._file_of), None):
                files.WEIGHTS.fail(file, f"tensor {repeated} is also in another file of the directory")
            self._file_of.update(dict.fromkeys(keys, handle))

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def keys(self) -> set[str]:
        """All keys."""
        return set(self._file_of)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it. Raises CheckpointError if there is none."""
        if key not in self._file_of:
            raise CheckpointError(f"tensor {key} is missing; is this a Video-XL-2 checkpoint?")
        return tuple(self._file_of[key].get_slice(key).get_shape())

    def dtype(self, key: str) -> str:
        """The dtype of a tensor as safetensors calls it."""
        return self._file_of[key].get_slice(key).get_dtype()

    def unsupported_dtype(self, key: str) -> str:
        """The dtype of a tensor as safetensors calls it, if it is not one of the floating-point ones; else ""."""
        dtype = self.dtype(key)
        return "" if dtype in _DTYPES else dtype

    def get(self, key: str) -> StoredTensor:
        """A tensor. It is read when it is cut. Raises CheckpointError if there is none."""
        return StoredTensor(self.shape(key), self._file_of[key].get_slice(key))


def _safetensors_files(directory: Path) -> list[Path]:
    """The files that the index names, or without an index all of the directory."""
    index = directory / INDEX
    if not files.is_there(index):
        if found := sorted(directory.glob("*.safetensors")):
            return found
        raise CheckpointError(f"{directory}: no .safetensors files; give a Hugging Face checkpoint directory")
    try:
        names = set(msgspec.convert(files.read_json(index, files.CHECKPOINT_JSON), _Index).weight_map.values())
    except ValueError as error:  # of msgspec, or of a key that is no Unicode text
        files.CHECKPOINT_JSON.fail(index, f"not an index of shards ({error})", error)
    for name in sorted(names):
        if PurePath(name).name != name or not name.endswith(".safetensors"):
            files.CHECKPOINT_JSON.fail(index, f"{name!r:.60} is not the name of a .safetensors file of this directory")
        if not files.is_there(directory / name):
            raise CheckpointError(f"{directory}: shard {name} is missing; download it again")
    return [directory / name for name in sorted(names)]
