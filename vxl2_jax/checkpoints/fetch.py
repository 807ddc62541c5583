"""Finding and loading a checkpoint by name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vxl2_jax import files, hardware
from vxl2_jax.checkpoints import huggingface, native
from vxl2_jax.checkpoints.config_files import read_config
from vxl2_jax.checkpoints.shards import Shards
from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import CheckpointError, RequestError, first_line
from vxl2_jax.models import quantised

NANO = Path(__file__).parent.parent / "assets" / "nano"


def find(name: str | Path) -> Path:
    """The directory of a checkpoint: "nano", a path, or a name on the Hugging Face hub, which is downloaded.

    A hub name may end with @ and a branch, a tag or a commit.

    Raises CheckpointError if there is none.
    """
    if str(name) == "nano":
        return NANO
    try:
        path = files.check_path(name, "the name of a model")
    except RequestError as error:
        raise CheckpointError(str(error)) from error
    if os.path.isdir(path):
        return path
    repository, _, revision = str(name).partition("@")
    if os.path.exists(path) or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repository):
        raise CheckpointError(
            f"{name}: no such checkpoint directory; give nano, a directory, or a Hugging Face name like BAAI/Video-XL-2, "
            "with @revision if it is not the latest"
        )
    return _download(repository, revision or None)


_FILES = ["*.json", "merges.txt", "*.safetensors"]
"""What loading reads; patterns of names in the repository's own folder."""


def _download(name: str, revision: str | None) -> Path:
    """Download what is not in the cache, with the library's progress bars.

    The library obeys HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT and HF_HOME.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES, ignore_patterns=["*/*"]))
    except Exception as error:  # network, name and permission errors have many classes
        at = f"{name}@{revision}" if revision else name
        raise CheckpointError(
            f"{at}: no such directory, and cannot be downloaded from the Hugging Face hub ({first_line(error)}); "
            "check the name and the connection"
        ) from error


def read(
    directory: Path,
    dtype: Any,
    progress: Callable[[int, int], None] | None = None,
    weights: str | None = None,
    placed: Callable[[Any], Any] | None = None,
) -> tuple[ModelConfig, Any]:
    """The configuration and the parameters in a directory of either layout.

    weights: one of `models.quantised.SETTINGS`; None: as they are stored. placed: as in `huggingface.load`. Raises as `huggingface.load` and `native.load`, and
    RequestError without the backend that JAX is to use.
    """
    hardware.device()
    if native.is_native(directory):
        return native.load(directory, dtype, progress, weights, placed)
    return huggingface.load(directory, dtype, progress, weights or quantised.WIDE, placed)


def describe(directory: Path) -> tuple[ModelConfig, str]:
    """The configuration of a directory of either layout, and how its weights are stored, without reading them.

    Raises CheckpointError if it is damaged.
    """
    if native.is_native(directory):
        return native.describe(directory)
    return read_config(directory, Shards(directory)), quantised.WIDE
