"""Range attention: every query attends to one contiguous range of keys in each of a few streams."""

from pallas_kernels.attention.dispatch import (
    CPU_KEYS,
    NAMES,
    REFERENCE,
    AttentionPlan,
    Kernel,
    KernelChoice,
    attend,
    choose_kernel,
    full_attention,
    plan_attention,
)
from pallas_kernels.attention.reference import KVCache, key_mass
from pallas_kernels.attention.select import select_kernel
from pallas_kernels.attention.self_test import self_test

__all__ = [
    "CPU_KEYS",
    "NAMES",
    "REFERENCE",
    "KernelChoice",
    "Kernel",
    "AttentionPlan",
    "KVCache",
    "attend",
    "full_attention",
    "choose_kernel",
    "select_kernel",
    "key_mass",
    "plan_attention",
    "self_test",
]
