"""The device that is present, as one to plan for."""

from __future__ import annotations

import functools
import math

from vxl2_jax import hardware
from vxl2_jax.config import ModelConfig, video_xl_2
from vxl2_jax.models.quantised import INT8, WIDE
from vxl2_jax.planning.devices import DEVICES, USABLE, DeviceSpec
from vxl2_jax.planning.fitting import AUTO_FRAMES, advice, max_frames

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

    With the device's default dtype, wide weights and cache, or with the options that leave room for a video of `AUTO_FRAMES`.
    """
    device = present_device()
    if device is None:
        return "the memory of this device is unknown"
    default = 4 if hardware.default_dtype(device) == "float32" else 2
    fitting: dict[str, int] = {}
    for itemsize, weights, cache in ((default, WIDE, WIDE), (2, WIDE, WIDE), (2, INT8, WIDE), (2, INT8, INT8)):
        named = " --dtype bfloat16" * (itemsize < default) + f" --weights {weights}" * (weights != WIDE)
        named += f" --cache {cache}" * (cache != WIDE)
        fitting[named] = max_frames(config, None, 1.0, device, itemsize=itemsize, weights=weights, cache=cache)
    enough = [named for named, frames in fitting.items() if frames >= AUTO_FRAMES]
    named = enough[0] if enough else max(fitting, key=lambda named: fitting[named])
    if frames := fitting[named]:
        return f"up to {frames:,} frames fit this {device.platform}{' with' * bool(named)}{named}"
    free = f"{device.usable_bytes / 1e9:.3g} GB"
    return f"{advice(config, None, 1.0, device, AUTO_FRAMES)}, but not on this {device.platform}, which has {free} free"


@functools.cache
def how_to_use_the_real_model() -> str:
    """The options that load the released model, and how much of a video then fits this machine, in one phrase.

    Found out once per process: it takes longer than nano takes to answer a question.
    """
    return f"--model {RELEASED}, a download of about 16 GB: {fits_here(video_xl_2())}"
