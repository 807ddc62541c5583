"""Native checkpoint directories: parameters saved by Orbax, or quantised ones in a safetensors file; the configuration as
JSON; and tokenizer.json.

Loading them needs no renaming, transposing or quantising.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NoReturn

import jax
import msgspec
import numpy as np

from vxl2_jax import files
from vxl2_jax.checkpoints import assemble, huggingface, quantised_file
from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import CheckpointError, first_line
from vxl2_jax.models import quantised

_CONFIG, _PARAMS = "vxl2.json", "params"
_VERSION = 2
"""Of the format. Version 1 is wide and names neither its version nor its weights."""
_SAME_INTEGERS = {quantised.INT8, quantised.W8A8}
"""Settings that store the same arrays: loading chooses between them."""


class _Format(msgspec.Struct, frozen=True):
    """What vxl2.json says besides the model's configuration."""

    version: Annotated[int, msgspec.Meta(ge=1)] = 1
    weights: Literal["wide", "int8", "w8a8", "int4"] = "wide"


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


def save(
    directory: str | Path,
    config: ModelConfig,
    params: Any,
    tokenizer_json: str,
    more: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write a new directory atomically; `more`: the contents of further files by name.

    Raises CheckpointError if it exists already or cannot be written.
    """
    directory = check_target(directory)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs pages about errors that it raises
    part = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    about = {"version": _VERSION, "weights": quantised.setting_of(params), **dataclasses.asdict(config)}
    try:
        _remove_abandoned(directory)
        part.mkdir(parents=True)
        if about["weights"] == quantised.WIDE:
            write_params(part / _PARAMS, params)
        else:
            quantised_file.write(part, params)
        (part / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        for name, content in more.items():
            (part / name).write_bytes(content)
        (part / _CONFIG).write_text(json.dumps(about, indent=1))
        os.replace(part, directory)
    except OSError as error:
        raise CheckpointError(
            f"{directory}: cannot write the checkpoint ({error.strerror or error}); choose another path, or free some space"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _remove_abandoned(directory: Path) -> None:
    """Remove what processes that were killed have left of this directory."""
    for part in directory.parent.glob(f".{glob.escape(directory.name)}.*.part"):
        process = part.name.split(".")[-2]
        if process.isdecimal() and not files.is_running(int(process)):
            shutil.rmtree(part, ignore_errors=True)


def write_params(path: Path, params: Any) -> None:
    """Write parameters with Orbax. Raises OSError if they cannot be written, before a disk that is too small is full."""
    import orbax.checkpoint as ocp  # slow to import, and most models are not stored in this format

    files.check_disk_space(path.parent, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))

    def chunks(leaf: Any) -> Any:
        """A chunk is read as a whole: of what is large, a layer of a stack, or a part of a table."""
        if leaf.nbytes <= assemble.SMALL:
            return ocp.SaveArgs()
        return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if leaf.ndim > 2 else ())

    try:
        with ocp.StandardCheckpointer() as writer:
            writer.save(path, params, save_args=jax.tree.map(chunks, params))
    except ValueError as error:  # TensorStore's
        raise OSError(first_line(error)) from error


_CHUNK_BYTES = 2**24
_CACHE_BYTES = 2**28
"""Of chunks that are kept while parts of them are used: one for each shard at least, or all of a layer."""


def load(
    directory: str | Path,
    dtype: Any = "bfloat16",
    progress: Callable[[int, int], None] | None = None,
    weights: str | None = None,
    placed: Callable[[Any], Any] | None = None,
) -> tuple[ModelConfig, Any]:
    """Read what `save` wrote; what is not quantised is cast to `dtype`.

    Large arrays are read a part at a time.

    Args:
      directory: a native checkpoint.
      dtype: of everything that is not quantised.
      progress: called with (arrays done, all arrays) after each array.
      weights: one of `models.quantised.SETTINGS`; None: as they are stored. Wide weights are quantised while they are read.
      placed: as in `huggingface.load`.

    Raises:
      CheckpointError: it is damaged, or is quantised in a way that `weights` cannot be made of.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's warnings about a damaged directory are in our error
    directory = files.check_path(directory, "the checkpoint").absolute()
    config, stored = describe(directory)
    weights = weights or stored
    same = weights == stored or {weights, stored} == _SAME_INTEGERS
    if not same and stored != quantised.WIDE:
        raise CheckpointError(
            f"{directory}: its weights are stored as {stored}, of which {weights} cannot be made; leave out weights, or "
            "take the checkpoint that it was converted from"
        )
    abstract = huggingface.abstract_params(config, dtype, weights)
    abstract = placed(abstract) if placed else abstract
    wide = stored == quantised.WIDE
    structure = jax.tree.structure(abstract, is_leaf=quantised.is_quantised if wide else None)
    leaves = []
    try:
        if wide:
            _check_shapes(directory / _PARAMS, huggingface.abstract_params(config, dtype))
        for leaf in (
            _read_wide(directory / _PARAMS, abstract, weights) if wide else quantised_file.read(directory, abstract)
        ):
            leaves.append(leaf)
            if progress:
                progress(len(leaves), structure.num_leaves)
    except Exception as error:  # Orbax and TensorStore raise many classes for damaged files
        _fail(directory, first_line(error), error)
    return config, jax.tree.unflatten(structure, leaves)


def _read_wide(path: Path, abstract: Any, weights: str) -> Iterator[Any]:
    """Read wide parameters one after another, and quantise those that `abstract` has so. Raises ValueError for NaN."""
    for keys, leaf in jax.tree_util.tree_leaves_with_path(abstract, is_leaf=quantised.is_quantised):
        names = [key.key for key in keys]
        store, scheme = _open(path, names), quantised.scheme_of(names, weights)
        if assemble.is_small(leaf):
            with np.errstate(over="ignore"):  # what overflows is infinite, and refused
                array = np.asarray(store).astype(leaf.dtype)
            assemble.check_finite(".".join(names), np.isfinite(array).all())
            yield assemble.place(array, leaf)
            continue
        stacked = "layers" in names
        tensors = (store[layer] for layer in range(store.shape[0])) if stacked else [store]
        axis = scheme.channel_axis if scheme else _most_chunks(store, stacked)
        make = _Make(None if scheme else leaf.dtype, scheme)
        found, finite = assemble.assemble(
            leaf, tensors, make, stacked=stacked, source_axis=axis, axis=axis, same_axes=scheme is None
        )
        assemble.check_finite(".".join(names), all(finite))
        yield found


@dataclass(frozen=True)
class _Make:
    """What is made of a part of a stored array: it is cast, or quantised."""

    dtype: Any
    scheme: quantised.Scheme | None

    def __call__(self, part: jax.Array) -> Any:
        return quantised.quantise(part, self.scheme) if self.scheme else part.astype(self.dtype)


def _open(path: Path, names: Sequence[str]) -> Any:
    """A stored array, cut by indexing. Orbax itself reads whole arrays only."""
    import tensorstore

    spec = {
        "driver": "auto",
        "kvstore": {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": f"{path}/"},
            "path": f"{'.'.join(names)}/",
        },
        "context": {"cache_pool": {"total_bytes_limit": _CACHE_BYTES}},
    }
    store = tensorstore.open(spec, read=True).result()
    chunk = (
        math.prod(size or 1 for size in store.chunk_layout.read_chunk.shape or ()) * store.dtype.numpy_dtype.itemsize
    )
    # A chunk that the cache cannot keep, of a checkpoint of earlier versions, would be read again for each part.
    return store if chunk <= _CACHE_BYTES else np.asarray(store)


def describe(directory: Path) -> tuple[ModelConfig, str]:
    """The configuration, and how the weights are stored. Raises CheckpointError if that cannot be read."""
    path = directory / _CONFIG
    fields = files.read_json_object(path, files.CHECKPOINT_JSON)
    try:
        about = msgspec.convert(fields, _Format)
        if about.version > _VERSION:
            raise CheckpointError(f"{path}: format {about.version} is newer than this vxl2_jax: update vxl2_jax")
        return msgspec.convert(fields, ModelConfig), about.weights
    except ValueError as error:  # of msgspec, or of a key that is no Unicode text
        _fail(path, str(error), error)


def _most_chunks(store: Any, stacked: bool) -> int:
    """The axis of an array, or of a layer of it, along which it has the most chunks: a part of it then is of few of them."""
    if isinstance(store, np.ndarray):
        return 0
    counts = [
        size / (chunk or size) for size, chunk in zip(store.shape, store.chunk_layout.read_chunk.shape, strict=True)
    ]
    return int(np.argmax(counts[int(stacked) :]))


def _check_shapes(path: Path, wide: Any) -> None:
    """Raise ValueError for the first array that has another shape than in `wide`: before memory is allocated for what
    vxl2.json says."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        if (found := reader.metadata(path).item_metadata) is None:
            raise ValueError(f"{path.name} holds no wide parameters")
    shapes = {jax.tree_util.keystr(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(found.tree)}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(wide):
        name = jax.tree_util.keystr(keys)
        if shapes.get(name) != leaf.shape:
            raise ValueError(f"{name} is {shapes.get(name, 'missing')}, but {_CONFIG} says {leaf.shape}")


def _fail(where: Path, problem: str, cause: BaseException | None = None) -> NoReturn:
    raise CheckpointError(f"{where}: not a readable native checkpoint ({problem}); convert it again") from cause
