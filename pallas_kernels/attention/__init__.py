"""Range attention: every query attends to one contiguous range of keys in each of a few streams."""

from pallas_kernels.attention.dispatch import (
    CPU_KEYS,
    NAMES,
    REFERENCE,
    Choice,
    Kernel,
    Reads,
    attend,
    attend_fully,
    choose,
    prepare,
)
from pallas_kernels.attention.reference import Stream, key_mass
from pallas_kernels.attention.trial import trial
from pallas_kernels.attention.tried import choose_tried

__all__ = [
    "CPU_KEYS",
    "NAMES",
    "REFERENCE",
    "Choice",
    "Kernel",
    "Reads",
    "Stream",
    "attend",
    "attend_fully",
    "choose",
    "choose_tried",
    "key_mass",
    "prepare",
    "trial",
]
