"""Finding and loading a checkpoint by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vxl2_jax.checkpoints import huggingface, native
from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import CheckpointError, first_line

NANO = Path(__file__).parent.parent / "assets" / "nano"


def find(name: str | Path) -> Path:
    """The directory of a checkpoint: "nano", a path, or a name on the Hugging Face hub, which is downloaded.

    Raises CheckpointError if there is none.
    """
    if str(name) == "nano":
        return NANO
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    parts = str(name).split("/")
    if path.exists() or len(parts) != 2 or not all(parts) or str(name).startswith((".", "~")):
        raise CheckpointError(
            f"{name}: no such checkpoint directory; give nano, a directory, or a Hugging Face name like BAAI/Video-XL-2"
        )
    return _download(str(name))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # network, name and permission errors have many classes
        raise CheckpointError(
            f"{name}: no such directory, and cannot be downloaded from the Hugging Face hub ({first_line(error)}); "
            "check the name and the connection"
        ) from error


def load(
    name: str | Path, dtype: Any, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, tuple[ModelConfig, Any]]:
    """Returns (directory, (config, params)). Arguments and errors as in `find` and `huggingface.load`."""
    directory = find(name)
    reader = native if native.is_native(directory) else huggingface
    return directory, reader.load(directory, dtype, progress)
