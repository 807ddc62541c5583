"""The kernel that a device gets: the best one written for it that passes its trial there."""

from __future__ import annotations

from typing import Any

from pallas_kernels.attention.dispatch import REFERENCE, KernelChoice, choose_kernel
from pallas_kernels.attention.self_test import self_test


def select_kernel(name: str = "auto", *, dtype: Any, width: int, device: Any = None) -> KernelChoice:
    """As `dispatch.choose_kernel`, but "auto" tries its kernel on a small problem first, and passes over one that fails.

    device: the present one, where a kernel runs that is tried. Raises ValueError as `choose_kernel` does.
    """
    failed: dict[str, str] = {}
    while True:
        choice = choose_kernel(name, dtype=dtype, width=width, device=device, failed=failed)
        if name != "auto" or choice.kernel == REFERENCE:
            return choice
        wrong = self_test(choice.kernel, dtype=dtype, width=width)
        if wrong is None:
            return choice
        failed[choice.kernel.name] = f"it failed its trial on this machine: {wrong}"
