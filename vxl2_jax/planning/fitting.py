"""Whether a video fits: with which settings, up to which length, and what to change where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vxl2_jax import hosts
from vxl2_jax.config import ModelConfig
from vxl2_jax.errors import RequestError, TooLongError
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.models import quantised
from vxl2_jax.options import AUTO, DEVICE, HOST
from vxl2_jax.planning import memory_model
from vxl2_jax.planning.devices import DEVICES, DeviceSpec
from vxl2_jax.planning.memory_model import Workload
from vxl2_jax.planning.plan import layout_for, plan
from vxl2_jax.tensor_parallel import MeshShape, check_divides
from vxl2_jax.text.tokenizer import Tokenizer

_MAX_STRIDES = 512
"""Search limit of `max_frames`: at 64 groups per stride, 36 hours at one frame per second."""

WEIGHTS_AND_CACHE = (
    (quantised.WIDE, quantised.WIDE),
    (quantised.WIDE, quantised.INT8),
    (quantised.INT8, quantised.WIDE),
    (quantised.INT8, quantised.INT8),
    (quantised.INT4, quantised.INT8),
)
"""Settings of weights and of the cache, those that change keys and values least first."""


def places_on(device: DeviceSpec, sequence: int = 1) -> tuple[str, ...]:
    """Where the dense level can be, the fastest first. The memory of a CPU is the host's.

    sequence: over how many devices the video is sharded, which it is only on devices.
    """
    return (DEVICE,) if device.platform == "cpu" or sequence > 1 else (DEVICE, HOST)


def settings_on(device: DeviceSpec, sequence: int = 1) -> list[tuple[str, str, str]]:
    """`WEIGHTS_AND_CACHE` with the places of the dense level, which change only the time. sequence: see `places_on`."""
    return [(weights, cache, place) for weights, cache in WEIGHTS_AND_CACHE for place in places_on(device, sequence)]


def fitting_settings(
    config: ModelConfig, layout: Layout, device: DeviceSpec, *, itemsize: int = 2, **settings: Any
) -> list[dict[str, Any]]:
    """The settings of weights and cache with which a video fits a device, those that change the model least first.

    Args:
      settings: fields of `memory_model.Workload` that the device does not determine; `weights`, `cache` and `dense_level`
        do not count.

    Returns:
      One entry each: weights, cache, dense_level, peak_bytes and host_bytes.
    """
    found = []
    for weights, cache, place in settings_on(device, settings.get("sequence", 1)):
        held = {"weights": weights, "cache": cache, "dense_level": place}
        fields: dict[str, Any] = {**device.settings(config, itemsize, cache), **settings, **held}
        workload = Workload(**fields)
        peak = _peak(memory_model.phases(config, layout, workload))
        if peak <= device.usable_bytes:
            host = memory_model.host_bytes(config, layout, workload)
            found.append(held | {"peak_bytes": peak, "host_bytes": host})
    return found


def flags_of(weights: str, cache: str, dense_level: str, **_: Any) -> str:
    """The options of the command line that ask for these settings."""
    named = {"weights": weights, "cache": cache, "dense-level": dense_level}
    asked = [f"--{name} {setting}" for name, setting in named.items() if setting not in (quantised.WIDE, DEVICE)]
    return " ".join(asked) or "--weights wide"


def advice(
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    fps: float,
    device: DeviceSpec,
    frames: int,
    *,
    itemsize: int = 2,
    **settings: Any,
) -> str:
    """One line: what would fit a device that a plan of `frames` frames does not fit. settings: as for `max_frames`."""

    def frames_on(other: DeviceSpec, weights: str, cache: str, place: str) -> int:
        held = {"weights": weights, "cache": cache, "dense_level": place}
        return max_frames(config, tokenizer, fps, other, itemsize=itemsize, **{**settings, **held})

    layout = layout_for(config, tokenizer, frames, fps)
    asked = *(settings.get(name, quantised.WIDE) for name in ("weights", "cache")), settings.get("dense_level", DEVICE)
    limit = frames_on(device, *asked)
    shorter = f"give --max-frames {limit} or a lower --fps" if limit else ""
    if found := fitting_settings(config, layout, device, itemsize=itemsize, **settings):
        return f"it fits with {flags_of(**found[0])}" + f"; or {shorter}" * bool(limit)
    sequence = settings.get("sequence", 1)
    longest = {held: frames_on(device, *held) for held in settings_on(device, sequence) if held != asked}
    held = max(longest, key=lambda held: longest[held])
    smaller = f"with {flags_of(*held)} {longest[held]} frames fit" if longest[held] > limit else ""
    if limit or smaller:
        return "; ".join(filter(None, (f"{limit} frames fit: {shorter}" * bool(limit), smaller)))
    fitting = [name for name, other in DEVICES.items() if frames_on(other, *asked)]
    return f"the model itself does not fit; it fits on {', '.join(fitting) or 'no device in the list'}"


def best_mesh(
    config: ModelConfig,
    layout: Layout,
    rule: PrefillRule,
    count: int,
    device: DeviceSpec,
    *,
    itemsize: int = 2,
    **settings: Any,
) -> MeshShape:
    """The mesh of `count` devices on which a video fits and the sum of computing and communication is least, by the rates of the
    data sheets; if it fits none, that with the lowest peak.

    settings: as for `fitting_settings`. Raises RequestError if the model cannot be split over `count` devices.
    """

    def cost(mesh: MeshShape) -> tuple[bool, float]:
        fields = {**device.settings(config, itemsize, settings.get("cache", quantised.WIDE)), **settings}
        found = plan(config, layout, rule, **{**fields, "devices": mesh.model, "sequence": mesh.sequence})
        if not found.fits(device):
            return True, found.peak_bytes
        return False, found.seconds(device) + found.communication_seconds(device)

    candidates, refusal = {}, None
    for model in range(1, count + 1):
        mesh = MeshShape(model, count // model)
        if mesh.devices != count or device.sizes.vision_groups % model:
            continue
        try:
            check_divides(config, model)
            candidates[mesh] = cost(mesh)
        except RequestError as error:
            refusal = error
    if not candidates:
        raise refusal or RequestError(f"no mesh of {count} devices suits this model: choose another number")
    return min(candidates, key=lambda mesh: candidates[mesh])


AUTO_FRAMES = 1024
"""Length of the video that weights chosen automatically must leave room for."""


def fitting_weights(
    config: ModelConfig, tokenizer: Tokenizer | None, usable_bytes: float, **settings: Any
) -> tuple[str, str]:
    """The widest weights with which watching `AUTO_FRAMES` frames fits, or int4 if none does.

    w8a8 is never chosen: it takes as many bytes as int8.

    Args:
      config, tokenizer: of the model.
      usable_bytes: of the device.
      settings: fields of `memory_model.Workload`, without `weights`.

    Returns:
      (one of `models.quantised.SETTINGS`, the reason in one line).
    """
    layout = layout_for(config, tokenizer, AUTO_FRAMES, fps=1.0)

    def needed(weights: str) -> int:
        return _peak(memory_model.phases(config, layout, Workload(weights=weights, **settings)))

    frames, usable = f"{AUTO_FRAMES:,} frames", f"{usable_bytes / 1e9:.1f} GB"
    too_wide = ""
    for weights in (quantised.WIDE, quantised.INT8, quantised.INT4):
        if needed(weights) <= usable_bytes:
            return weights, f"{too_wide}{frames} need {needed(weights) / 1e9:.1f} of {usable}"
        too_wide += f"{weights} would need {needed(weights) / 1e9:.1f} GB; "
    return quantised.INT4, f"{too_wide}{frames} do not fit {usable}"


def max_frames(
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    fps: float,
    device: DeviceSpec,
    *,
    itemsize: int = 2,
    **settings: Any,
) -> int:
    """The largest number of frames, in whole strides, that fits a device; 0 if one stride does not fit.

    settings: fields of `memory_model.Workload` that the device does not determine.
    """
    step = device.sizes.stride * config.frames_per_group
    cache = settings.get("cache", quantised.WIDE)
    workload = Workload(**device.settings(config, itemsize, cache), **settings)
    layout = layout_for(config, tokenizer, _MAX_STRIDES * step, fps)

    def fits(strides: int) -> bool:
        part = Layout(layout.prefix, layout.timestamp_lengths[: strides * device.sizes.stride], layout.visual)
        return _peak(memory_model.phases(config, part, workload)) <= device.usable_bytes

    return step * _largest(fits, _MAX_STRIDES)


def check_memory(
    config: ModelConfig,
    layout: Layout,
    *,
    frames: int,
    weights_bytes: int,
    used_bytes: int,
    limit_bytes: int | None,
    free_host_bytes: float | None = None,
    **settings: Any,
) -> None:
    """Raise TooLongError if watching a video, or asking one question about it, would run out of memory.

    Args:
      frames: frames of the video.
      weights_bytes: bytes of the model's weights.
      used_bytes: bytes in use before watching, weights included.
      limit_bytes: bytes that this process can use; None if unknown, and nothing is refused.
      free_host_bytes: free bytes of the host's memory; None if the device is the host.
      settings: fields of `memory_model.Workload`.
    """
    workload = Workload(**settings)

    def lacking(part: Layout, workload: Workload) -> tuple[float, float, str] | None:
        """(bytes needed, bytes available, of what) if a memory of this layout does not fit."""
        host = memory_model.host_bytes(config, part, workload)
        device = used_bytes - weights_bytes + _peak(memory_model.phases(config, part, workload, weights_bytes))
        if free_host_bytes is None:
            device += host
        elif host > free_host_bytes:
            return host, free_host_bytes, "the host's memory"
        return (device, limit_bytes, "memory") if limit_bytes is not None and device > limit_bytes else None

    missing = lacking(layout, workload)
    if missing is None:
        return
    stride = workload.sizes.stride

    def fits(strides: int) -> bool:
        # The last timestamps are the longest; fewer frames of the same video may have timestamps as long.
        lengths = layout.timestamp_lengths[-strides * stride :]
        return lacking(Layout(layout.prefix, lengths, layout.visual), workload) is None

    fitting = config.frames_per_group * stride * _largest(fits, (layout.groups - 1) // stride)
    fix = (
        f"{fitting} frames fit: give --max-frames {fitting} or a lower --fps"
        if fitting
        else "not even a short video fits: use a larger machine, --weights int8 or --dtype bfloat16"
    )
    others = {"--cache int8": workload._replace(cache=quantised.INT8)}
    if workload.sequence == 1:
        others["--dense-level host"] = workload._replace(dense_level=HOST)
    for flag, other in others.items():
        if lacking(layout, other) is None:
            fix = f"it fits with {flag}; or {fix}"
    needed, available, what = missing
    raise TooLongError(
        f"{frames} frames need {needed / 1e9:.3g} GB of {what}, but only {available / 1e9:.3g} GB are available: {fix}"
    )


def choose_place(
    config: ModelConfig, layout: Layout, asked: str, *, free_host_bytes: float | None, **known: Any
) -> tuple[str, str]:
    """Where the dense level of a memory goes: as asked, and with AUTO to the host's memory only if the device has no room.

    Args:
      config, layout: the model and the video.
      asked: one of `options.PLACES`.
      free_host_bytes, known: see `check_memory`.

    Returns:
      (DEVICE or HOST; the reason in one line if HOST was chosen automatically, else "").

    Raises:
      TooLongError: it fits neither, or not where it was asked for.
      RequestError: host memory was asked for on a mesh that shards the video.
    """
    known = {**known, "free_host_bytes": free_host_bytes}
    if known.get("sequence", 1) > 1 or hosts.several():
        if asked == HOST:
            raise RequestError(
                "dense_level host: on a mesh over the video or over hosts it is held on the devices; give auto"
            )
        asked = DEVICE
    if asked != AUTO:
        check_memory(config, layout, dense_level=asked, **known)
        return asked, ""
    try:
        check_memory(config, layout, dense_level=DEVICE, **known)
        return DEVICE, ""
    except TooLongError:
        if free_host_bytes is None:
            raise
        check_memory(config, layout, dense_level=HOST, **known)
    return HOST, (
        "the dense level is held in host memory, because the device has no room for it: watching copies it "
        "layer by layer, and each question loads its dense chunks"
    )


def _peak(phases: dict[str, dict[str, int]]) -> int:
    return max(sum(phase.values()) for phase in phases.values())


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that fits, by bisection; 0 if none does."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
