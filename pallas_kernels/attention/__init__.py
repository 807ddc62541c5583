"""Range attention: every query attends to one contiguous range of keys in each of a few streams."""

from pallas_kernels.attention.dispatch import AttentionPlan, attend, full_attention, moved_log_sum_exp, plan_attention
from pallas_kernels.attention.gradient import refusal as gradient_refusal
from pallas_kernels.attention.kernel import NAMES, REFERENCE, Kernel, kernel_for
from pallas_kernels.attention.reference import key_mass
from pallas_kernels.attention.select import (
    KernelChoice,
    choose_kernel,
    choose_tested_kernel,
    kernel_refusal,
    tested_gradient,
)
from pallas_kernels.attention.self_test import TOLERANCE, self_test
from pallas_kernels.kv_cache import KVCache

__all__ = [
    "NAMES",
    "REFERENCE",
    "TOLERANCE",
    "AttentionPlan",
    "KVCache",
    "Kernel",
    "KernelChoice",
    "attend",
    "choose_kernel",
    "full_attention",
    "gradient_refusal",
    "kernel_for",
    "kernel_refusal",
    "key_mass",
    "moved_log_sum_exp",
    "plan_attention",
    "choose_tested_kernel",
    "self_test",
    "tested_gradient",
]
