"""What watching and asking will take, known beforehand: tokens, attention pairs, operations, bytes.

Operations are multiply-adds counted twice, of matrix products alone; bytes are those of arrays that stand in
device memory at the same time (`footprint`). Seconds are a floor: operations over the rate a device can reach, as if
nothing ever waited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from pallas_kernels import attention
from vxl2_jax import hardware
from vxl2_jax.checkpoints import fetch
from vxl2_jax.config import ModelConfig, nano, video_xl_2
from vxl2_jax.errors import RequestError, TooLongError
from vxl2_jax.hardware import BatchSizes
from vxl2_jax.layout import Layout, PrefillRule, attention_pairs
from vxl2_jax.cache.pooling import check_compression
from vxl2_jax.planning import memory_model
from vxl2_jax.planning.memory_model import Workload
from vxl2_jax.text import prompt
from vxl2_jax.text.tokenizer import Tokenizer


class DeviceSpec(NamedTuple):
    """Memory (GB), rate of 16-bit matrix products (TFLOP/s), and what JAX says of such a device, by which dtype,
    kernel and sizes are chosen as on the machine itself."""

    memory_gb: float
    tflops: float
    device_kind: str
    compute_capability: str = ""

    @property
    def platform(self) -> str:
        return "gpu" if self.compute_capability else "tpu"

    @property
    def sizes(self) -> BatchSizes:
        """How much it does at a time."""
        return hardware.sizes_for(self)

    @property
    def usable_bytes(self) -> float:
        """What arrays can have."""
        return USABLE * self.memory_gb * 1e9

    def settings(self, config: ModelConfig, itemsize: int = 2) -> dict[str, Any]:
        """The fields of `memory_model.Workload` that follow from the device."""
        dtype = jnp.float32 if itemsize == 4 else jnp.dtype(hardware.default_dtype(self))
        kernel = attention.choose_kernel(dtype=dtype, width=config.language.head_width, device=self).kernel
        return {"itemsize": itemsize, "sizes": self.sizes, "kernel": kernel, "platform": self.platform}


DEVICES = {
    "t4": DeviceSpec(16, 65, "Tesla T4", "7.5"),
    "l4": DeviceSpec(24, 121, "NVIDIA L4", "8.9"),
    "a100-40": DeviceSpec(40, 312, "NVIDIA A100-SXM4-40GB", "8.0"),
    "a100-80": DeviceSpec(80, 312, "NVIDIA A100-SXM4-80GB", "8.0"),
    "h100": DeviceSpec(80, 989, "NVIDIA H100 80GB HBM3", "9.0"),
    "h200": DeviceSpec(141, 790, "NVIDIA H200", "9.0"),
    "v4": DeviceSpec(32, 275, "TPU v4"),
    "v5e": DeviceSpec(16, 197, "TPU v5 lite"),
    "v5p": DeviceSpec(95, 459, "TPU v5"),
    "v6e": DeviceSpec(32, 918, "TPU v6 lite"),
}
"""Makers' data sheets; the H200's rate is one measured on random bf16 matrices."""

USABLE = 0.95
"""Share of a device's memory that arrays can have; the rest is the runtime's."""


@dataclass(frozen=True)
class Plan:
    """What a video takes, and one question about it.

    flops: by part; phases: bytes that stand at the same time, by phase and part; cache_bytes: (mixed, dense), of the
    real tokens that a question loads and of all.
    """

    layout: Layout
    question_tokens: int
    attention_pairs_kept: int
    attention_pairs_causal: int
    flops: dict[str, int]
    phases: dict[str, dict[str, int]]
    cache_bytes: tuple[int, int]

    @property
    def bytes(self) -> dict[str, int]:
        """The most that each part (weights, dense, sparse, activations) ever takes; not all at the same time."""
        parts = dict.fromkeys(("weights", "dense", "sparse", "activations"), 0)
        return {part: max(phase.get(part, 0) for phase in self.phases.values()) for part in parts}

    @property
    def peak_phase(self) -> str:
        """The phase in which most stands."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak_bytes(self) -> int:
        return sum(self.phases[self.peak_phase].values())

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())

    def seconds(self, device: DeviceSpec) -> float:
        """Floor of watching and reading the question."""
        return self.total_flops / (device.tflops * 1e12)

    def fits(self, device: DeviceSpec) -> bool:
        return self.peak_bytes <= device.usable_bytes


def model_of(name: str) -> tuple[ModelConfig, Tokenizer | None]:
    """Geometry and tokenizer of nano, or the geometry of the released model, whose weights are not needed.

    Raises RequestError for another name: a plan must not download or read a checkpoint.
    """
    if name == "nano":
        tokenizer = Tokenizer.read(fetch.NANO)
        return nano(tokenizer.vocabulary), tokenizer
    if name.lower() in ("video-xl-2", "baai/video-xl-2"):
        return video_xl_2(), None
    raise RequestError(f"{name}: plans are made for video-xl-2 and nano; choose one of them")


def layout_for(config: ModelConfig, tokenizer: Tokenizer | None, frames: int, fps: float) -> Layout:
    """The layout of `frames` frames at `fps` a second.

    Without a tokenizer a timestamp is counted as Qwen2.5's does: "Time" is one token, and so is every
    character after it.
    """
    groups = -(-frames // config.frames_per_group)
    texts = [prompt.timestamp_text(config.frames_per_group * g / fps) for g in range(groups)]
    if tokenizer is None:
        return Layout(14, tuple(len(text) - len("Time") + 1 for text in texts), config.visual_tokens)

    def count(text):
        return len(tokenizer.encode(text))

    return Layout(count(prompt.prefix_text()), tuple(map(count, texts)), config.visual_tokens)


def plan(config: ModelConfig, layout: Layout, rule: PrefillRule, **settings: Any) -> Plan:
    """Count what a layout takes. settings: fields of `memory_model.Workload`; see `DeviceSpec.settings`.

    Raises RequestError for a compression that the model does not allow.
    """
    how = Workload(**settings)
    check_compression(how.compression, config.visual_tokens)
    kept, causal = attention_pairs(layout, rule, how.question_tokens)
    slot = memory_model.token_bytes(config, how.itemsize)
    mixed, dense = memory_model.cached_tokens(layout, how)
    return Plan(
        layout,
        how.question_tokens,
        kept,
        causal,
        _flops(config, layout, kept, how.question_tokens),
        memory_model.phases(config, layout, how),
        (slot * mixed, slot * dense),
    )


def _flops(config: ModelConfig, layout: Layout, pairs: int, question: int) -> dict[str, int]:
    vision, lm = config.vision, config.language
    patches, c = vision.grid**2, vision.width
    tower = vision.layers * (8 * patches * c**2 + 4 * patches * c * vision.mlp + 4 * patches**2 * c)
    frame = tower + 2 * patches * 3 * vision.patch_size**2 * c
    places, steps, group = config.resized_grid**2, config.frames_per_group, 0
    while steps > 1:
        spatial = steps * (8 * places * c**2 + 4 * places**2 * c)
        temporal = 8 * steps * places * c**2 + 8 * places * steps**2 * c
        steps //= 2
        group += spatial + temporal + 2 * steps * places * 27 * c**2
    projector = 2 * places * c * lm.width + 2 * layout.visual * lm.width**2
    heads, kv = lm.heads * lm.head_width, lm.kv_heads * lm.head_width
    asked = sum(layout.length + i + 1 for i in range(question))
    keys = 4 * lm.width * kv
    layer = keys + 4 * lm.width * heads + 6 * lm.width * lm.mlp
    # The last layer of what is watched stops at keys and values.
    linear = layout.length * ((lm.layers - 1) * layer + keys) + question * lm.layers * layer
    return {
        "vision": config.frames_per_group * layout.groups * frame,
        "dts": layout.groups * group,
        "projector": layout.groups * projector,
        "language_linear": linear,
        "attention": 4 * heads * ((lm.layers - 1) * pairs + asked),
    }


def advice(
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    fps: float,
    device: DeviceSpec,
    *,
    itemsize: int = 2,
    **settings: Any,
) -> str:
    """One line: what would fit a device where a plan does not. settings: as of `plan`, but for those of the device."""
    most = most_frames(config, tokenizer, fps, device, itemsize=itemsize, **settings)
    if most:
        return f"up to {most} frames fit: give --max-frames {most} or a lower --fps"

    def able(other):
        return most_frames(config, tokenizer, fps, other, itemsize=itemsize, **settings)

    fitting = [name for name, other in DEVICES.items() if able(other)]
    return f"the model itself does not fit; it does on {', '.join(fitting) or 'no device known here'}"


def most_frames(
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    fps: float,
    device: DeviceSpec,
    *,
    itemsize: int = 2,
    **settings: Any,
) -> int:
    """The most frames that fit a device, in whole strides; 0 if not even one stride does."""
    step = device.sizes.stride * config.frames_per_group
    how = Workload(**device.settings(config, itemsize), **settings)
    layout = layout_for(config, tokenizer, _MOST_STRIDES * step, fps)

    def fits(strides: int) -> bool:
        part = Layout(layout.prefix, layout.timestamp_lengths[: strides * device.sizes.stride], layout.visual)
        return _peak(memory_model.phases(config, part, how)) <= device.usable_bytes

    return step * _most(fits, _MOST_STRIDES)


def check_memory(
    config: ModelConfig,
    layout: Layout,
    *,
    frames: int,
    weights_bytes: int,
    used_bytes: int,
    limit_bytes: int | None,
    **settings: Any,
) -> None:
    """Raise TooLongError if watching `frames` frames, or asking one question about them, would run out of memory.

    weights_bytes: of the model; used_bytes: all that is taken before watching, weights included; limit_bytes: all
    there is (None: unknown, and nothing is refused); settings: fields of `memory_model.Workload`.
    """
    how = Workload(**settings)
    beside = used_bytes - weights_bytes

    def needed(part):
        return beside + _peak(memory_model.phases(config, part, how, weights_bytes))

    if limit_bytes is None or needed(layout) <= limit_bytes:
        return
    stride, per_group = how.sizes.stride, config.frames_per_group

    def fits(strides: int) -> bool:
        # The longest timestamps are the last ones: fewer frames of the same video have some as long.
        return needed(Layout(layout.prefix, layout.timestamp_lengths[-strides * stride :], layout.visual)) <= limit_bytes

    most = per_group * stride * _most(fits, (layout.groups - 1) // stride)
    mend = (
        f"up to {most} frames fit: give --max-frames {most} or a lower --fps"
        if most
        else "the model leaves too little for even a short video: use a larger machine or --dtype bfloat16"
    )
    raise TooLongError(
        f"{frames} frames need {needed(layout) / 1e9:.3g} GB of memory and {limit_bytes / 1e9:.3g} GB are there: {mend}"
    )


_MOST_STRIDES = 512
"""Nobody is told of more strides than this (of 64 groups: a day and a half at a frame a second)."""


def _peak(phases: dict[str, dict[str, int]]) -> int:
    return max(sum(phase.values()) for phase in phases.values())


def _most(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that fits, by halving; 0 if none does."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
