"""The machine: its default dtype, batch sizes, memory, and the jit caches of this process."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vxl2_jax.buckets import bucket, round_up
from vxl2_jax.errors import RequestError, first_line


class BatchSizes(NamedTuple):
    """How work is divided into calls.

    Attributes:
      stride: groups per call of the language model.
      vision_groups: groups per call of the vision tower, a divisor of `stride`.
      question_tokens: the shortest length to which questions are padded.
      overlaps_calls: the next call of the vision tower is issued before the last one has ended. A CPU would run as many
        at the same time as it has cores, each with its own activations.
      fills_batches: the last batch of questions is filled up with empty ones: an accelerator waits for its memory, so
        they cost nothing. A CPU would compute for as long as with real ones, so it gets several smaller batches,
        unless at least three quarters of the rows are real.
    """

    stride: int
    vision_groups: int
    question_tokens: int = 64
    overlaps_calls: bool = True
    fills_batches: bool = True

    def question_length(self, tokens: int) -> int:
        """The padded length of a question of `tokens` tokens: few distinct values, so that few programs are compiled."""
        return bucket(round_up(tokens, 8 if tokens > 64 else 16), minimum=self.question_tokens)


CPU = BatchSizes(stride=40, vision_groups=4, question_tokens=32, overlaps_calls=False, fills_batches=False)
SMALL = BatchSizes(stride=40, vision_groups=4, question_tokens=32)
"""A stride has a fixed cost, equal to about 6 groups for nano on two CPU cores, and the last stride is half empty on
average. For videos of a few minutes, 40 is close to the best trade-off."""
LARGE = BatchSizes(stride=64, vision_groups=16)
"""Timestamps attend to the whole video, and a group has few of them: only a large stride has enough for many tiles."""


class CompilerTraits(NamedTuple):
    """How XLA compiles the model's programs on a platform, as far as memory is concerned.

    Attributes:
      slices_layers: in a loop over stacked layers it copies each layer's weights out of the stack.
      separate_layers: so the layers of the language model are kept apart (see `qwen2.separate_layers`). They are not on
        a CPU, where models are small and compiling one layer takes seconds.
      fuses_pooling: the sparse level is made without an array of all un-rotated keys.
      lanes: the last dimension of an array is padded to multiples of this.
    """

    slices_layers: bool = True
    separate_layers: bool = False
    fuses_pooling: bool = False
    lanes: int = 1


def capability(device: Any) -> float:
    """CUDA compute capability; 0 for other devices."""
    return float(getattr(device, "compute_capability", 0) or 0)


def compiler_for(device: Any) -> CompilerTraits:
    """How XLA compiles for a device; where that is not known, as for a CPU.

    On NVIDIA cards older than Ampere, layers stay stacked: XLA has no Triton for them and no kernel of ours runs there, so
    28 layers of the reference would take minutes to compile. The step of a quantised model reads the stack in place
    (`models.few_rows`); that of a 16-bit one, which does not fit these cards, would not.
    """
    if device.platform == "tpu":
        return CompilerTraits(slices_layers=False, lanes=128)
    if device.platform in ("gpu", "cuda"):
        return CompilerTraits(separate_layers=capability(device) >= 8, fuses_pooling=True)
    return CompilerTraits()


def device() -> jax.Device:
    """The device that computes: the first one of this host, unless `use_device` or JAX's configuration names another.

    To be called before anything else of JAX that needs a device. Raises RequestError if the backend that JAX_PLATFORMS or
    JAX_DEFAULT_DEVICE names is not there.
    """
    chosen = jax.config.jax_default_device  # a device, or the name of a platform
    if not (chosen is None or isinstance(chosen, str)):
        return chosen
    try:
        return jax.local_devices(backend=chosen)[0]
    except (RuntimeError, AssertionError) as error:  # JAX 0.11 asserts that there is a default backend
        name, variable = (chosen, "JAX_DEFAULT_DEVICE") if chosen else (jax.config.jax_platforms, "JAX_PLATFORMS")
        reason = f" ({first_line(error)})" if str(error) else ""
        raise RequestError(
            f"JAX cannot use the backend {name}{reason}; install its plug-in, or unset {variable}"
        ) from error


def host() -> jax.Device:
    """The host as a device. Raises RequestError where JAX runs without its CPU backend."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise RequestError(f"JAX has no CPU backend; add cpu to JAX_PLATFORMS ({first_line(error)})") from error


def to_host(tree: Any) -> Any:
    """A tree of arrays in host memory; where JAX runs without a CPU backend, as it is."""
    with suppress(RequestError):
        return jax.device_put(tree, host())
    return tree


@contextmanager
def numerics(dtype: Any) -> Generator[None, None, None]:
    """A context in which the model computes the same, whatever JAX is configured to.

    64-bit types are off, promotion of dtypes is standard, and float32 products are computed in float32 if `dtype` is
    float32: by default GPUs and TPUs use TF32 or bfloat16.
    """
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        with jax.default_matmul_precision("highest" if jnp.dtype(dtype) == jnp.float32 else "default"):
            yield


def use_device(number: int) -> jax.Device:
    """Let this process compute on one of the devices that JAX shows it, and return it. Raises RequestError, as `device`."""
    chosen = device()
    if number:
        chosen = jax.local_devices()[number]
        jax.config.update("jax_default_device", chosen)
    return chosen


def default_dtype(device: Any) -> str:
    """float32 on a CPU, float16 on NVIDIA cards without bfloat16 (T4 and older), bfloat16 elsewhere."""
    if device.platform == "cpu":
        return "float32"
    return "float16" if 0 < capability(device) < 8 else "bfloat16"


def sizes_for(device: Any) -> BatchSizes:
    """LARGE on accelerators, but SMALL on NVIDIA cards older than Ampere, which have little memory."""
    if device.platform == "cpu":
        return CPU
    return SMALL if 0 < capability(device) < 8 else LARGE


_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def memory_bytes(device: Any, proc: Path = _PROC, groups: Path = _GROUPS) -> int | None:
    """Bytes of a device's memory that this process can use, including those in use; None if unknown.

    On an accelerator this is the allocator's limit. On a CPU it is the free memory plus what the process uses, or the
    limit of its control groups if that is smaller.

    Args:
      device: a JAX device.
      proc, groups: where Linux reports memory and control groups.
    """
    if device.platform != "cpu":
        return _stats(device).get("bytes_limit")
    return _host_bytes(proc, groups)


def _host_bytes(proc: Path, groups: Path) -> int | None:
    limits = list(_group_limits(proc, groups))
    free, used = _kilobytes(proc / "meminfo", "MemAvailable"), _kilobytes(proc / "self" / "status", "VmRSS")
    if free is not None and used is not None:
        limits.append(1024 * (free + used))
    return min(limits, default=None)


def used_bytes(device: Any, proc: Path = _PROC) -> int | None:
    """Bytes of that memory that this process uses now; None if unknown."""
    if device.platform != "cpu":
        return _stats(device).get("bytes_in_use")
    return _host_used_bytes(proc)


def free_host_bytes(proc: Path = _PROC, groups: Path = _GROUPS) -> float:
    """Bytes of the host's memory that this process can still use, whatever its device; infinite if unknown."""
    limit, used = _host_bytes(proc, groups), _host_used_bytes(proc)
    return math.inf if limit is None or used is None else max(limit - used, 0)


def _host_used_bytes(proc: Path) -> int | None:
    used = _kilobytes(proc / "self" / "status", "VmRSS")
    return None if used is None else 1024 * used


_SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_OTHER_SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR")


def unused_memory(device: Any) -> str:
    """How to let JAX use the memory of a GPU that it leaves out by default, in one line; "" where there is nothing to say.

    JAX reads this when it starts, so it can only be named after that. The command line sets it.
    """
    if device.platform not in ("gpu", "cuda") or any(name in os.environ for name in (_SHARE, *_OTHER_SHARES)):
        return ""
    return (
        f"JAX uses at most 75 % of this GPU's memory: set {_SHARE}=0.95 in the environment, before JAX starts, for longer "
        "videos"
    )


def clear_jit_caches(share: float = 0.5, proc: Path = _PROC) -> bool:
    """Clear JAX's jit caches if this process uses more than a share of the memory maps that Linux allows.

    Each of XLA's CPU programs uses ten or more maps, of usually 65,530; a process that is refused one dies without a
    message. Programs that are needed again are compiled again, or loaded from JAX's compilation cache on disk if it is
    enabled (see `compile_cache`). On accelerators nothing is done.

    Args:
      share: the share of the maps above which caches are cleared.
      proc: where Linux reports maps.

    Returns:
      Whether the caches were cleared.
    """
    if jax.default_backend() != "cpu":
        return False
    limit = _read(proc / "sys" / "vm" / "max_map_count").strip()
    if not limit.isdigit() or _read(proc / "self" / "maps").count("\n") <= share * int(limit):
        return False
    jax.clear_caches()
    return True


def _stats(device: Any) -> dict[str, int]:
    try:
        return device.memory_stats() or {}
    except (NotImplementedError, RuntimeError):  # not every runtime reports statistics
        return {}


def _kilobytes(path: Path, name: str) -> int | None:
    """The number in a line such as "MemAvailable:  123 kB"."""
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    return None


def _group_limits(proc: Path, groups: Path) -> Iterator[int]:
    """Memory limits of the process's control group and its parents, for cgroup versions 1 and 2."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        # In a container the path may be the host's; then only the root exists.
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            limit = _read(root.joinpath(*parts[:depth]) / name).strip()
            if limit.isdigit():  # or "max"
                yield int(limit)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
