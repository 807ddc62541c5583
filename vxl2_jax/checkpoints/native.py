"""Native checkpoint directories: parameters saved by Orbax, the configuration as JSON, and tokenizer.json.

Loading them needs no renaming or transposing.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import msgspec

from vxl2_jax import files, hardware
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import CheckpointError, first_line

_CONFIG, _PARAMS = "vxl2.json", "params"


def is_native(directory: Path) -> bool:
    """Whether `save` wrote this directory."""
    return files.is_there(directory / _CONFIG)


def check_target(directory: str | Path) -> Path:
    """The absolute path of a directory to be written. Raises CheckpointError if it exists already, or cannot be made."""
    directory = files.check_path(directory, "the directory to write").absolute()
    if files.is_there(directory):
        raise CheckpointError(f"{directory} exists already; choose a new directory or remove it")
    above = next((parent for parent in directory.parents if files.is_there(parent)), directory)
    if not above.is_dir():
        raise CheckpointError(f"{directory}: {above} is no directory; choose another path")
    return directory


def save(directory: str | Path, config: ModelConfig, params: Any, tokenizer_json: str) -> None:
    """Write a new directory atomically. Raises CheckpointError if it exists already or cannot be written."""
    directory = check_target(directory)
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True)
        write_params(partial / _PARAMS, params)
        (partial / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        (partial / _CONFIG).write_text(json.dumps(dataclasses.asdict(config), indent=1))
        os.replace(partial, directory)
    except OSError as error:
        raise CheckpointError(
            f"{directory}: cannot write the checkpoint ({error.strerror or error}); choose another path, or free some space"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_params(path: Path, params: Any) -> None:
    """Write parameters with Orbax. Raises OSError if they cannot be written, before a disk that is too small is full."""
    import orbax.checkpoint as ocp  # slow to import, and most models are not stored in this format

    files.check_disk_space(path.parent, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
    try:
        with ocp.StandardCheckpointer() as writer:
            writer.save(path, params)
    except ValueError as error:  # TensorStore's
        raise OSError(first_line(error)) from error


def load(
    directory: str | Path, dtype: Any = "bfloat16", progress: Callable[[int, int], None] | None = None
) -> tuple[ModelConfig, Any]:
    """Read what `save` wrote, cast to `dtype`. Raises CheckpointError if it is damaged."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's warnings about a damaged directory are in our error
    directory = files.check_path(directory, "the checkpoint").absolute()
    config = _read_config(directory / _CONFIG)
    sharding = jax.sharding.SingleDeviceSharding(hardware.device())
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=sharding),
        huggingface.abstract_params(config),
    )
    try:
        with ocp.StandardCheckpointer() as reader:
            _check_shapes(reader.metadata(directory / _PARAMS).item_metadata.tree, target)
            params = reader.restore(directory / _PARAMS, target)
    except Exception as error:  # Orbax and TensorStore raise many classes for damaged files
        _fail(directory, first_line(error), error)
    for path, finite in jax.tree_util.tree_leaves_with_path(_all_finite(params)):
        if not finite:
            _fail(directory, f"{jax.tree_util.keystr(path)} has NaN or infinite values")
    if progress:
        progress(1, 1)
    return config, params


def _read_config(path: Path) -> ModelConfig:
    fields = files.read_json_object(path, files.CHECKPOINT_JSON)
    try:
        return msgspec.convert(fields, ModelConfig)
    except msgspec.ValidationError as error:
        _fail(path, str(error), error)


def _check_shapes(found: Any, target: Any) -> None:
    """Raise ValueError for the first leaf that has another shape: before Orbax allocates what vxl2.json says."""
    shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(found)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(target):
        name = jax.tree_util.keystr(path)
        if shapes.get(name) != leaf.shape:
            raise ValueError(f"{name} is {shapes.get(name, 'missing')}, but {_CONFIG} says {leaf.shape}")


@jax.jit
def _all_finite(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), params)


def _fail(where: Path, problem: str, cause: BaseException | None = None) -> NoReturn:
    raise CheckpointError(f"{where}: not a readable native checkpoint ({problem}); convert it again") from cause
