"""From the name of a model to its configuration and parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vxl2_jax.checkpoints import huggingface, native
from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import CheckpointError, first_line

NANO = Path(__file__).parent.parent / "assets" / "nano"


def find(name: str | Path) -> Path:
    """The directory of a model: "nano", a path, or a name on the Hugging Face hub (downloaded once)."""
    if str(name) == "nano":
        return NANO
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    parts = str(name).split("/")
    if path.exists() or len(parts) != 2 or not all(parts) or str(name).startswith((".", "~")):
        raise CheckpointError(
            f"{name}: no such checkpoint directory; give nano, a directory, or a hub name like BAAI/Video-XL-2"
        )
    return _download(str(name))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # network, name and permission errors come in many classes
        raise CheckpointError(
            f"{name}: neither a directory here nor to be had from the Hugging Face hub ({first_line(error)})"
        ) from error


def load(
    name: str | Path, dtype: Any, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, tuple[ModelConfig, Any]]:
    """(directory, (config, params)) of a named model."""
    directory = find(name)
    reader = native if native.is_native(directory) else huggingface
    return directory, reader.load(directory, dtype, progress)
