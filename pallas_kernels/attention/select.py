"""Kernel selection for a device: the best kernel written for it that passes its self-test there."""

from __future__ import annotations

from typing import Any

from jax.typing import DTypeLike

from pallas_kernels.attention.dispatch import REFERENCE, KernelChoice, choose_kernel
from pallas_kernels.attention.self_test import self_test


def select_kernel(name: str = "auto", *, dtype: DTypeLike, width: int, device: Any = None) -> KernelChoice:
    """Choose a kernel as `dispatch.choose_kernel` does, but with "auto" skip kernels that fail their self-test.

    Args:
      name: "auto" or a kernel's name, which is taken without a test.
      dtype: of the caches.
      width: head width D.
      device: the present one (default: the first), on which the self-test runs.

    Raises:
      ValueError: as `choose_kernel`.
    """
    failed: dict[str, str] = {}
    while True:
        choice = choose_kernel(name, dtype=dtype, width=width, device=device, failed=failed)
        if name != "auto" or choice.kernel == REFERENCE:
            return choice
        failure = self_test(choice.kernel, dtype=dtype, width=width)
        if failure is None:
            return choice
        failed[choice.kernel.name] = f"its self-test failed on this machine: {failure}"
