"""Where JAX keeps compiled programs between processes: a folder of the user's own, unless JAX has one already."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import jax

from vxl2_jax import cpu

MIN_COMPILE_SECONDS = 0.0
"""Programs that compile faster are not kept. Loading nano takes some 80 small ones, which are read back faster than compiled."""


def folder() -> Path:
    """The folder of this version of JAX and this number of CPU cores, in XDG_CACHE_HOME or ~/.cache.

    A relative XDG_CACHE_HOME counts as none, as its specification says. XLA compiles CPU programs for the number of
    cores, which is not part of JAX's cache key.
    """
    return user_cache() / "xla" / f"jax-{jax.__version__}-{cpu.cpu_cores()}-cores"


def user_cache() -> Path:
    """The folder of this program in XDG_CACHE_HOME or ~/.cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path(os.path.expanduser("~/.cache"))) / "vxl2_jax"


def enable() -> Path | None:
    """Let JAX keep the compiled programs of this process in `folder()`, which is created.

    Does nothing if JAX has a folder already (JAX_COMPILATION_CACHE_DIR), or its cache is off
    (JAX_ENABLE_COMPILATION_CACHE=0). Compiled programs are executed: a folder that another user owns or can write to is
    not used, with a warning.

    Returns:
      The folder, or None if nothing was changed.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return None
    found = folder()
    if problem := _make(found):
        logging.getLogger("vxl2_jax").warning("compiled programs are not kept: %s", problem)
        return None
    jax.config.update("jax_compilation_cache_dir", str(found))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return found


def kept(name: str) -> Path | None:
    """A folder next to that of the compiled programs, private like it, which is created; None if JAX keeps none."""
    if not (jax.config.jax_compilation_cache_dir and jax.config.jax_enable_compilation_cache):
        return None
    found = folder().parents[1] / name
    return None if _make(found) else found


def _make(found: Path) -> str | None:
    """Make a folder. Returns why it cannot be trusted or used; None if it can."""
    try:
        if not found.is_absolute():  # HOME is relative, or not set and the user unknown
            return f"there is no home folder: set HOME, or XDG_CACHE_HOME, not {found}"
        ours = _ours(found)
        ours[0].parent.mkdir(parents=True, exist_ok=True)
        for place in ours:
            place.mkdir(mode=0o700, exist_ok=True)
        return _problem(found)
    except OSError as error:
        return str(error)


def _ours(found: Path) -> tuple[Path, ...]:
    """A folder and those above it that this package made, outermost first."""
    root = folder().parents[1]
    return (root, *(place for place in reversed(found.parents) if root in place.parents), found)


def _problem(found: Path) -> str | None:
    """Why a folder cannot be trusted or used; None if it can."""
    for place in _ours(found) if hasattr(os, "getuid") else ():
        status = place.stat()
        if {status.st_uid, place.lstat().st_uid} != {os.getuid()}:
            return f"{place} belongs to another user"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"other users can write to {place}: chmod go-w {place}"
    return None if os.access(found, os.W_OK) else f"{found} cannot be written"
