"""The cost of a video before it is watched: see `plan`, `fitting`, `memory_model` and `devices`."""

from vxl2_jax.planning.devices import DEVICES, USABLE, DeviceSpec
from vxl2_jax.planning.fitting import (
    advice,
    best_mesh,
    check_memory,
    choose_place,
    fitting_settings,
    fitting_weights,
    max_frames,
    places_on,
)
from vxl2_jax.planning.plan import Plan, count_tokens, layout_for, model_of, plan
from vxl2_jax.planning.present import fits_here, how_to_use_the_real_model, present_device

__all__ = [
    "DEVICES",
    "USABLE",
    "DeviceSpec",
    "Plan",
    "advice",
    "best_mesh",
    "fitting_settings",
    "check_memory",
    "choose_place",
    "count_tokens",
    "fitting_weights",
    "fits_here",
    "how_to_use_the_real_model",
    "layout_for",
    "max_frames",
    "model_of",
    "places_on",
    "plan",
    "present_device",
]
