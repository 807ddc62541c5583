"""What suits the machine that runs: dtype, and how much to do at a time."""

from __future__ import annotations

from typing import Any, NamedTuple


class Sizes(NamedTuple):
    """stride: groups fed through the language model at a time; vision_groups: groups whose frames go through
    the vision tower at a time, which divides `stride`."""

    stride: int
    vision_groups: int


SMALL = Sizes(stride=16, vision_groups=4)
LARGE = Sizes(stride=64, vision_groups=16)
"""Timestamps look back over the whole video, and there are few of them: large strides make their tiles many."""


def capability(device: Any) -> float:
    """CUDA compute capability; 0 for other devices."""
    return float(getattr(device, "compute_capability", 0) or 0)


def default_dtype(device: Any) -> str:
    """float32 on a CPU; float16 on NVIDIA cards without bfloat16 (T4 and older); else bfloat16."""
    if device.platform == "cpu":
        return "float32"
    return "float16" if 0 < capability(device) < 8 else "bfloat16"


def sizes_for(device: Any) -> Sizes:
    """Large strides on accelerators with the memory for them; small ones on a CPU and on older cards."""
    return SMALL if device.platform == "cpu" or 0 < capability(device) < 8 else LARGE
