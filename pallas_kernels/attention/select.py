"""Kernel selection for a device: the best kernel written for it that passes its self-test there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.attention import gradient
from pallas_kernels.attention.dispatch import refusal
from pallas_kernels.attention.kernel import NAMES, Kernel, kernel_for
from pallas_kernels.attention.self_test import self_test


class KernelChoice(NamedTuple):
    """A kernel, one line that says why it was chosen, and whether a better one was written for the device, or the device
    is an accelerator for which none is written."""

    kernel: Kernel
    reason: str
    fallback: bool = False


def _candidates(device: Any) -> list[str]:
    """Kernels written for a device, best first."""
    if device.platform == "tpu":
        return ["tpu"]
    if device.platform in ("gpu", "cuda"):
        capability = float(getattr(device, "compute_capability", 0) or 0)
        return ["hopper", "ampere"] if int(capability) == 9 else ["ampere"] if capability >= 8 else []
    return []


def choose_kernel(
    name: str = "auto",
    *,
    dtype: DTypeLike,
    width: int,
    cache_dtype: DTypeLike | None = None,
    device: Any = None,
    failed: Mapping[str, str] = MappingProxyType({}),
) -> KernelChoice:
    """Choose the kernel for caches of `dtype` and head width `width` on `device`, without running anything.

    Args:
      name: "auto" chooses the best kernel that can run and falls back to the reference, saying why. Any other kernel is
        used as named; on a CPU it runs in Pallas' interpreter, which is for checking, not for speed.
      dtype: of queries, and of caches unless `cache_dtype` is given.
      width: head width D.
      cache_dtype: of caches.
      device: default: the first.
      failed: kernels that "auto" skips, and why.

    Raises:
      ValueError: an unknown name, or a named kernel that cannot run on the device or with the dtype and width.
    """
    if name not in NAMES:
        raise ValueError(f"unknown attention kernel {name!r}: choose {', '.join(NAMES)}")
    device = device or jax.devices()[0]
    kind = getattr(device, "device_kind", device.platform)
    plain = kernel_for("reference", "cpu" if device.platform == "cpu" else kind)
    if name == "reference":
        return KernelChoice(plain, "reference, as requested")
    candidates = _candidates(device)
    if name != "auto":
        if name not in candidates and device.platform != "cpu":
            better = f"{candidates[0]} or reference" if candidates else "reference"
            raise ValueError(f"the {name} attention kernel does not run on {kind}: choose {better}")
        kernel = kernel_for(name, kind, interpret=device.platform == "cpu")
        if why := kernel_refusal(kernel, dtype, width, cache_dtype=cache_dtype):
            raise ValueError(why)
        how = ", interpreted: slow, for checking only" if kernel.interpret else ""
        return KernelChoice(kernel, f"{name}, as requested{how}")
    if not candidates:
        reason = f"reference, in {jnp.dtype(dtype)}: no kernel is written for {kind}"
        return KernelChoice(plain, reason, fallback=device.platform != "cpu")
    skipped: list[str] = []
    for candidate in candidates:
        kernel = kernel_for(candidate, kind)
        if not (why := failed.get(candidate) or kernel_refusal(kernel, dtype, width, cache_dtype=cache_dtype)):
            return KernelChoice(kernel, "; ".join([f"{candidate}: written for {kind}", *skipped]), bool(skipped))
        skipped.append(f"not {candidate} ({why})")
    return KernelChoice(plain, f"reference, in {jnp.dtype(dtype)}: " + "; ".join(skipped), fallback=True)


def kernel_refusal(kernel: Kernel, dtype: DTypeLike, width: int, *, cache_dtype: DTypeLike | None = None) -> str | None:
    """Why a kernel cannot serve queries of this dtype and width, and caches of `cache_dtype`, with one of its tiles, or
    None."""
    if kernel.name == "ampere" and not kernel.interpret and jnp.dtype(dtype) == jnp.float32:
        # It compiles, but full float32 products do not use tensor cores and their tiles spill; it is for checking.
        return "the ampere kernel takes bfloat16 or float16 on a GPU, not float32: use one of these or the reference"
    refusals = (refusal(kernel, dtype, width, tiles, cache_dtype=cache_dtype) for tiles in kernel.row_tiles)
    return next((why for why in refusals if why), None)


def tested_gradient(
    kernel: Kernel, *, dtype: DTypeLike, width: int, test: Callable[..., str | None] | None = None
) -> tuple[Kernel, str]:
    """The kernel, set to how the gradient of its attention is computed on this machine, and that in one line.

    test: called in place of `self_test`, with the kernel, `dtype`, `width` and gradient=True.
    """
    if why := gradient.refusal(kernel, dtype=dtype, width=width):
        return kernel, f"plain JAX: {why}"
    if failure := (test or self_test)(kernel, dtype=dtype, width=width, gradient=True):
        why = f"the self-test of the {kernel.name} kernel's gradient failed on this machine: {failure}"
        return replace(kernel, differentiates=False), f"plain JAX: {why}"
    return kernel, kernel.name


def choose_tested_kernel(
    name: str = "auto",
    *,
    dtype: DTypeLike,
    width: int,
    cache_dtype: DTypeLike | None = None,
    device: Any = None,
    test: Callable[..., str | None] | None = None,
) -> KernelChoice:
    """Choose a kernel as `choose_kernel` does, but with "auto" skip kernels that fail their self-test.

    Args:
      name: "auto" or a kernel's name, which is taken without a test.
      dtype: of queries, and of caches unless `cache_dtype` is given.
      width: head width D.
      cache_dtype: of caches.
      device: the present one (default: the first), on which the self-test runs.
      test: called in place of `self_test`, with the kernel and `dtype`, `width` and `cache_dtype`.

    Raises:
      ValueError: as `choose_kernel`.
    """
    failed: dict[str, str] = {}
    while True:
        choice = choose_kernel(name, dtype=dtype, width=width, cache_dtype=cache_dtype, device=device, failed=failed)
        if name != "auto" or choice.kernel.name == "reference":
            return choice
        failure = (test or self_test)(choice.kernel, dtype=dtype, width=width, cache_dtype=cache_dtype)
        if failure is None:
            return choice
        failed[choice.kernel.name] = f"its self-test failed on this machine: {failure}"
