"""Native checkpoint directories: parameters saved by Orbax, the configuration as JSON, and tokenizer.json.

Loading them needs no renaming or transposing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vxl2_jax.checkpoints import huggingface
from vxl2_jax.config import LanguageConfig, ModelConfig, VisionConfig
from vxl2_jax.errors import CheckpointError, first_line

_CONFIG, _PARAMS = "vxl2.json", "params"


def is_native(directory: Path) -> bool:
    """Whether `save` wrote this directory."""
    return (directory / _CONFIG).exists()


def check_target(directory: str | Path) -> Path:
    """The absolute path of a directory to be written. Raises CheckpointError if it exists already."""
    directory = Path(directory).expanduser().absolute()
    if directory.exists():
        raise CheckpointError(f"{directory} exists already; choose a new directory or remove it")
    return directory


def save(directory: str | Path, config: ModelConfig, params: Any, tokenizer_json: str) -> None:
    """Write a new directory atomically. Raises CheckpointError if it exists already or cannot be written."""
    import orbax.checkpoint as ocp  # slow to import, and most models are not stored in this format

    directory = check_target(directory)
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True)
        with ocp.StandardCheckpointer() as writer:
            writer.save(partial / _PARAMS, params)
        (partial / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
        (partial / _CONFIG).write_text(json.dumps(dataclasses.asdict(config), indent=1))
        os.replace(partial, directory)
    except OSError as error:
        raise CheckpointError(
            f"{directory}: cannot write the checkpoint ({error}); choose another path, or free some space"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(
    directory: str | Path, dtype: Any = "bfloat16", progress: Callable[[int, int], None] | None = None
) -> tuple[ModelConfig, Any]:
    """Read what `save` wrote, cast to `dtype`. Raises CheckpointError if it is damaged."""
    import orbax.checkpoint as ocp

    directory = Path(directory).expanduser().absolute()
    try:
        fields = json.loads((directory / _CONFIG).read_text())
        vision, language = VisionConfig(**fields.pop("vision")), LanguageConfig(**fields.pop("language"))
        config = ModelConfig(vision=vision, language=language, **fields | {"stop_tokens": tuple(fields["stop_tokens"])})
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=sharding),
            huggingface.abstract_params(config),
        )
        with ocp.StandardCheckpointer() as reader:
            params = reader.restore(directory / _PARAMS, target)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{directory}: not a readable native checkpoint ({first_line(error)}); convert it again"
        ) from error
    if progress:
        progress(1, 1)
    return config, params
