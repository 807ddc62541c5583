"""The cost of a video before it is watched: see `plan`, `memory_model` and `devices`."""

from vxl2_jax.planning.devices import DEVICES, USABLE, DeviceSpec
from vxl2_jax.planning.plan import (
    Plan,
    advice,
    check_memory,
    count_tokens,
    fitting_weights,
    layout_for,
    max_frames,
    model_of,
    plan,
)

__all__ = [
    "DEVICES",
    "USABLE",
    "DeviceSpec",
    "Plan",
    "advice",
    "check_memory",
    "count_tokens",
    "fitting_weights",
    "layout_for",
    "max_frames",
    "model_of",
    "plan",
]
