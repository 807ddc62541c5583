"""The device that is present, as one to plan for."""

from __future__ import annotations

import math

from vxl2_jax import hardware
from vxl2_jax.config import ModelConfig, video_xl_2
from vxl2_jax.planning.devices import DEVICES, USABLE, DeviceSpec
from vxl2_jax.planning.plan import advice, max_frames

RELEASED = "BAAI/Video-XL-2"
"""The released model on the Hugging Face hub."""


def present_device() -> DeviceSpec | None:
    """The device that this process would use, with the memory that it can use now; None if that is unknown.

    The peak rate is NaN for a device that is not in `DEVICES`.
    """
    device = hardware.device()
    total = hardware.memory_bytes(device)
    if total is None:
        return None
    rates = [spec.tflops for spec in DEVICES.values() if spec.device_kind == device.device_kind]
    capability = str(getattr(device, "compute_capability", ""))
    return DeviceSpec(round(total / USABLE / 1e9, 1), (*rates, math.nan)[0], device.device_kind, capability)


def fits_here(config: ModelConfig) -> str:
    """In one phrase: how long a video the model can watch on the device that is present, or where it would fit.

    The dtype is the device's default one, or bfloat16, with its option, if only that fits.
    """
    device = present_device()
    if device is None:
        return "the memory of this device is unknown"
    default = 4 if hardware.default_dtype(device) == "float32" else 2
    for itemsize in sorted({default, 2}, reverse=True):
        if frames := max_frames(config, None, 1.0, device, itemsize=itemsize):
            option = " with --dtype bfloat16" * (itemsize < default)
            return f"up to {frames:,} frames fit this {device.platform}{option}"
    free = f"{device.usable_bytes / 1e9:.3g} GB"
    return f"{advice(config, None, 1.0, device)}, but not on this {device.platform}, which has {free} free"


def how_to_take_the_real_model() -> str:
    """In one phrase, for this machine."""
    return f"--model {RELEASED}, a download of about 16 GB: {fits_here(video_xl_2())}"
