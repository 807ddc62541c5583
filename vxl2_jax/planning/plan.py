"""What watching a video and asking one question cost: tokens, attention pairs, operations, bytes.

Operations are those of matrix products, a multiply-add counted as two. Bytes are the peak of the arrays that are live at
the same time (see `memory_model`). Seconds are a lower bound: operations divided by the device's peak rate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vxl2_jax.cache.pooling import check_compression
from vxl2_jax.checkpoints import fetch
from vxl2_jax.config import ModelConfig, nano, video_xl_2
from vxl2_jax.errors import RequestError, TooLongError
from vxl2_jax.layout import Layout, PrefillRule, attention_pairs
from vxl2_jax.models import quantised
from vxl2_jax.options import AUTO, DEVICE, HOST
from vxl2_jax.planning import memory_model
from vxl2_jax.planning.devices import DEVICES, DeviceSpec
from vxl2_jax.planning.memory_model import Workload
from vxl2_jax.text import prompt
from vxl2_jax.text.tokenizer import Tokenizer

_MAX_STRIDES = 512
"""Search limit of `max_frames`: at 64 groups per stride, 36 hours at one frame per second."""


@dataclass(frozen=True)
class Plan:
    """The cost of watching a video and asking one question.

    Attributes:
      layout: the tokens of the video.
      question_tokens: tokens of the question with its template.
      attention_pairs_kept, attention_pairs_causal: (query, key) pairs under the pre-fill rule, and under causal attention.
      flops: operations by part of the model.
      phases: live bytes by phase and part.
      cache_bytes: key/value bytes that the question loads, and those of the whole dense level.
      devices: over how many the model is sharded. Phases are those of one of them.
      host_bytes: bytes of the dense level in the memory of the host; host_traffic: bytes that are copied from it to the
        devices while the video is watched.
    """

    layout: Layout
    question_tokens: int
    attention_pairs_kept: int
    attention_pairs_causal: int
    flops: dict[str, int]
    phases: dict[str, dict[str, int]]
    cache_bytes: tuple[int, int]
    devices: int = 1
    host_bytes: int = 0
    host_traffic: int = 0

    @property
    def bytes(self) -> dict[str, int]:
        """Maximum over the phases of each part: weights, dense, sparse, activations."""
        parts = ("weights", "dense", "sparse", "activations")
        return {part: max(phase.get(part, 0) for phase in self.phases.values()) for part in parts}

    @property
    def peak_phase(self) -> str:
        """The phase with the most live bytes."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak_bytes(self) -> int:
        """Live bytes of `peak_phase`."""
        return sum(self.phases[self.peak_phase].values())

    @property
    def total_flops(self) -> int:
        """Operations of all parts."""
        return sum(self.flops.values())

    def seconds(self, device: DeviceSpec) -> float:
        """Lower bound of the time to watch the video and read the question."""
        return self.total_flops / (device.tflops * 1e12 * self.devices)

    def fits(self, device: DeviceSpec) -> bool:
        """Whether the peak fits the device's memory."""
        return self.peak_bytes <= device.usable_bytes


def model_of(name: str) -> tuple[ModelConfig, Tokenizer | None]:
    """The geometry and tokenizer of nano, or the geometry of the released model.

    Raises RequestError for another name: a plan must not download or read a checkpoint.
    """
    if name == "nano":
        tokenizer = Tokenizer.read(fetch.NANO)
        return nano(tokenizer.vocabulary), tokenizer
    if name.lower() in ("video-xl-2", "baai/video-xl-2"):
        return video_xl_2(), None
    raise RequestError(f"{name}: no plan for this model; choose nano or BAAI/Video-XL-2")


def count_tokens(text: str) -> int:
    """Tokens of the prefix or of a timestamp, as Qwen2.5's tokenizer counts them: of a timestamp "Time" is one token, and
    so is every character after it."""
    return 14 if text == prompt.prefix_text() else len(text) - len("Time") + 1


@functools.lru_cache(maxsize=8)
def layout_for(config: ModelConfig, tokenizer: Tokenizer | None, frames: int, fps: float) -> Layout:
    """The layout of a video of `frames` frames at `fps` frames per second.

    The last ones are kept: a plan asks for the same lengths many times, and a layout of hours takes a while.

    tokenizer: None for Qwen2.5's, which `count_tokens` replaces.
    """
    groups = -(-frames // config.frames_per_group)
    texts = [prompt.timestamp_text(config.frames_per_group * group / fps) for group in range(groups)]
    count = count_tokens if tokenizer is None else lambda text: len(tokenizer.encode(text))
    return Layout(count(prompt.prefix_text()), tuple(map(count, texts)), config.visual_tokens)


def plan(config: ModelConfig, layout: Layout, rule: PrefillRule, **settings: Any) -> Plan:
    """Compute the cost of a layout.

    Args:
      settings: fields of `memory_model.Workload`; `DeviceSpec.settings` gives those that a device determines.

    Raises:
      RequestError: the compression does not fit the model.
    """
    workload = Workload(**settings)
    check_compression(workload.compression, config.visual_tokens)
    kept, causal = attention_pairs(layout, rule, workload.question_tokens)
    bytes_per_token = memory_model.token_bytes(config, workload)
    loaded, whole = memory_model.cached_tokens(layout, workload)
    return Plan(
        layout,
        workload.question_tokens,
        kept,
        causal,
        _flops(config, layout, kept, workload.question_tokens),
        memory_model.phases(config, layout, workload),
        (bytes_per_token * loaded, bytes_per_token * whole),
        workload.devices,
        memory_model.host_bytes(config, layout, workload),
        _host_traffic(layout, workload) * bytes_per_token,
    )


def _host_traffic(layout: Layout, workload: Workload) -> int:
    """Tokens whose keys and values are copied to the device while a video is watched: before each stride those of all
    earlier ones, and at the end all of them."""
    if workload.dense_level != HOST:
        return 0
    ends = [*range(workload.sizes.stride, layout.groups, workload.sizes.stride), layout.groups]
    return sum(layout.visual * group + layout.global_range(0, group)[1] for group in ends)


def _flops(config: ModelConfig, layout: Layout, pairs: int, question: int) -> dict[str, int]:
    vision, lm = config.vision, config.language
    patches, width = vision.grid**2, vision.width
    tower = vision.layers * (8 * patches * width**2 + 4 * patches * width * vision.mlp + 4 * patches**2 * width)
    frame = tower + 2 * patches * 3 * vision.patch_size**2 * width
    cells, steps, group = config.resized_grid**2, config.frames_per_group, 0
    while steps > 1:
        spatial = steps * (8 * cells * width**2 + 4 * cells**2 * width)
        temporal = 8 * steps * cells * width**2 + 8 * cells * steps**2 * width
        steps //= 2
        group += spatial + temporal + 2 * steps * cells * 27 * width**2
    projector = 2 * cells * width * lm.width + 2 * layout.visual * lm.width**2
    heads, kv_heads = lm.heads * lm.head_width, lm.kv_heads * lm.head_width
    question_pairs = sum(layout.length + i + 1 for i in range(question))
    keys_values = 4 * lm.width * kv_heads
    layer = keys_values + 4 * lm.width * heads + 6 * lm.width * lm.mlp
    # For the video's tokens, the last layer computes only keys and values.
    linear = layout.length * ((lm.layers - 1) * layer + keys_values) + question * lm.layers * layer
    return {
        "vision": config.frames_per_group * layout.groups * frame,
        "dts": layout.groups * group,
        "projector": layout.groups * projector,
        "language_linear": linear,
        "attention": 4 * heads * ((lm.layers - 1) * pairs + question_pairs),
    }


WEIGHTS_AND_CACHE = (
    (quantised.WIDE, quantised.WIDE),
    (quantised.WIDE, quantised.INT8),
    (quantised.INT8, quantised.WIDE),
    (quantised.INT8, quantised.INT8),
    (quantised.INT4, quantised.INT8),
)
"""Settings of weights and of the cache, those that change keys and values least first."""
SETTINGS = tuple((*held, place) for held in WEIGHTS_AND_CACHE for place in (DEVICE, HOST))
"""The same with the place of the dense level, which changes only the time."""


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
    for weights, cache, place in SETTINGS:
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
    longest = {held: frames_on(device, *held) for held in SETTINGS if held != asked}
    held = max(longest, key=lambda held: longest[held])
    smaller = f"with {flags_of(*held)} {longest[held]} frames fit" if longest[held] > limit else ""
    if limit or smaller:
        return "; ".join(filter(None, (f"{limit} frames fit: {shorter}" * bool(limit), smaller)))
    fitting = [name for name, other in DEVICES.items() if frames_on(other, *asked)]
    return f"the model itself does not fit; it fits on {', '.join(fitting) or 'no device in the list'}"


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
    other_bytes = used_bytes - weights_bytes

    def needed(part: Layout) -> int:
        host = memory_model.host_bytes(config, part, workload) if free_host_bytes is None else 0
        return other_bytes + host + _peak(memory_model.phases(config, part, workload, weights_bytes))

    host = memory_model.host_bytes(config, layout, workload)
    if free_host_bytes is not None and host > free_host_bytes:
        raise TooLongError(
            f"{frames} frames need {host / 1e9:.3g} GB of the host's memory for the dense level, of which "
            f"{free_host_bytes / 1e9:.3g} GB are free: give --max-frames or a lower --fps, or --cache int8"
        )
    if limit_bytes is None or needed(layout) <= limit_bytes:
        return
    stride = workload.sizes.stride

    def fits(strides: int) -> bool:
        # The last timestamps are the longest; fewer frames of the same video may have timestamps as long.
        lengths = layout.timestamp_lengths[-strides * stride :]
        return needed(Layout(layout.prefix, lengths, layout.visual)) <= limit_bytes

    fitting = config.frames_per_group * stride * _largest(fits, (layout.groups - 1) // stride)
    fix = (
        f"{fitting} frames fit: give --max-frames {fitting} or a lower --fps"
        if fitting
        else "not even a short video fits: use a larger machine, --weights int8 or --dtype bfloat16"
    )
    smaller = workload._replace(cache=quantised.INT8)
    if other_bytes + _peak(memory_model.phases(config, layout, smaller, weights_bytes)) <= limit_bytes:
        fix = f"it fits with --cache int8; or {fix}"
    elsewhere = workload._replace(dense_level=HOST)
    peak = other_bytes + _peak(memory_model.phases(config, layout, elsewhere, weights_bytes))
    if free_host_bytes is not None and peak <= limit_bytes:
        fix = f"it fits with --dense-level host; or {fix}"
    raise TooLongError(
        f"{frames} frames need {needed(layout) / 1e9:.3g} GB of memory, but only {limit_bytes / 1e9:.3g} GB are "
        f"available: {fix}"
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
    """
    known = {**known, "free_host_bytes": free_host_bytes}
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
        "the dense level is held in the memory of the host, because the device has no room for it: watching copies it "
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
