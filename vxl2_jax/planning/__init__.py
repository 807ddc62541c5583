"""What watching and asking will take, known beforehand: see `plan` and `memory_model`."""

from vxl2_jax.planning.plan import (
    DEVICES,
    USABLE,
    DeviceSpec,
    Plan,
    advice,
    check_memory,
    layout_for,
    model_of,
    most_frames,
    plan,
)

__all__ = [
    "DEVICES",
    "USABLE",
    "DeviceSpec",
    "Plan",
    "advice",
    "check_memory",
    "layout_for",
    "model_of",
    "most_frames",
    "plan",
]
