"""The installed packages, as their metadata states them: whether JAX's parts are of one release."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

PLUGINS = ("jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt")


def version_of(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def jax_problem(version_of: Callable[[str], str | None] = version_of, loaded: Any = None) -> str | None:
    """What does not fit among JAX's parts, in one line with the fix; None if they fit.

    An installer upgrades jax and jaxlib without the plug-in for a GPU, which is no dependency of theirs. JAX then ignores
    the plug-in and computes on the CPU. In a notebook, an older jax may also still be loaded.

    Args:
      version_of: name of a distribution → its version, or None.
      loaded: the imported module jax, if any. None: that of this process.
    """
    jax, jaxlib = version_of("jax"), version_of("jaxlib")
    loaded = getattr(loaded or sys.modules.get("jax"), "__version__", jax)
    for name in PLUGINS:
        plugin = version_of(name)
        if plugin and jaxlib and _numbers(plugin) != _numbers(jaxlib):
            extra = name.split("-")[1]
            return (
                f"{name} {plugin} does not fit jaxlib {jaxlib}, so that no GPU would be used: "
                f"pip install 'jax[{extra}]=={jax}', and restart the session"
            )
    if loaded != jax:
        return f"jax {loaded} is loaded, but {jax} is installed: restart the session"
    return None


def _numbers(version: str) -> str:
    """The part of a version that JAX compares."""
    return re.split(r"[^0-9.]", version)[0].strip(".")
