"""What watching and asking will take, known beforehand: tokens, attention pairs, operations, bytes.

Operations are multiply-adds counted twice, of matrix products alone; bytes are those of arrays that stand in
device memory at the same time, with the same rounding up that watching does. Seconds are a floor: operations
over the rate a device can reach, as if nothing ever waited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from vxl2_jax import prefill
from vxl2_jax.buckets import bucket
from vxl2_jax.checkpoints import fetch, huggingface
from vxl2_jax.config import ModelConfig, nano, video_xl_2
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import Layout, Rule, attention_pairs
from vxl2_jax.machine import LARGE, SMALL, Sizes
from vxl2_jax.memory import check_compression
from vxl2_jax.text import prompt
from vxl2_jax.text.tokenizer import Tokenizer


class Device(NamedTuple):
    """Memory (GB), rate of 16-bit matrix products (TFLOP/s) and how large a step suits it."""

    memory_gb: float
    tflops: float
    sizes: Sizes = LARGE


DEVICES = {
    "t4": Device(16, 65, SMALL), "l4": Device(24, 121), "a100-40": Device(40, 312), "a100-80": Device(80, 312),
    "h100": Device(80, 989), "h200": Device(141, 790), "v4": Device(32, 275), "v5e": Device(16, 197),
    "v5p": Device(95, 459), "v6e": Device(32, 918),
}
"""Makers' data sheets; the H200's rate is one measured on random bf16 matrices."""

USABLE = 0.95
"""Share of a device's memory that arrays can have; the rest is the runtime's."""


@dataclass(frozen=True)
class Plan:
    """What a video takes. flops and bytes: by part; peak_bytes: the most that stands at once."""

    layout: Layout
    question_tokens: int
    attention_pairs_kept: int
    attention_pairs_causal: int
    flops: dict[str, int]
    bytes: dict[str, int]

    @property
    def peak_bytes(self) -> int:
        return sum(self.bytes.values())

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())

    def seconds(self, device: Device) -> float:
        """Floor of watching and reading the question."""
        return self.total_flops / (device.tflops * 1e12)


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
    count = lambda text: len(tokenizer.encode(text))
    return Layout(count(prompt.prefix_text()), tuple(map(count, texts)), config.visual_tokens)


def plan(
    config: ModelConfig, layout: Layout, rule: Rule, *, question_tokens: int = 68, compression: int = 4,
    itemsize: int = 2, sizes: Sizes = LARGE,
) -> Plan:
    """Count what a layout takes. itemsize: bytes of a weight, an activation and a cached number."""
    check_compression(compression, config.visual_tokens)
    kept, causal = attention_pairs(layout, rule, question_tokens)
    return Plan(
        layout, question_tokens, kept, causal, _flops(config, layout, kept, question_tokens),
        _bytes(config, layout, compression, itemsize, sizes),
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
    keys = 4 * lm.width * kv
    layer = keys + 4 * lm.width * heads + 6 * lm.width * lm.mlp
    # The last layer of what is watched stops at keys and values.
    linear = layout.length * ((lm.layers - 1) * layer + keys) + question * lm.layers * layer
    return {
        "vision": config.frames_per_group * layout.groups * frame, "dts": layout.groups * group,
        "projector": layout.groups * projector, "language_linear": linear,
        "attention": 4 * heads * (lm.layers - 1) * pairs,
    }


def _bytes(config: ModelConfig, layout: Layout, compression: int, itemsize: int, sizes: Sizes) -> dict[str, int]:
    vision, lm = config.vision, config.language
    room = prefill.capacity(layout, sizes.stride)
    slot = 2 * lm.layers * lm.kv_heads * lm.head_width * itemsize
    sparse = bucket(room.global_ + room.visual // layout.visual * (layout.visual // compression))
    rows = sizes.stride * layout.visual + room.global_rows
    stride = rows * (2 * lm.mlp + 4 * lm.width)
    frames = sizes.vision_groups * config.frames_per_group * vision.grid**2 * (vision.mlp + 3 * vision.width)
    weights = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(huggingface.abstract_params(config)))
    return {
        "weights": weights * itemsize, "dense": slot * (room.visual + room.global_), "sparse": slot * sparse,
        "activations": itemsize * max(stride, frames),
    }


def advice(
    config: ModelConfig, tokenizer: Tokenizer | None, fps: float, device: Device, *, compression: int, itemsize: int
) -> str:
    """One line: what would fit a device where a plan does not."""
    most = most_frames(config, tokenizer, fps, device, compression=compression, itemsize=itemsize)
    if most:
        return f"up to {most} frames fit: give --max-frames {most} or a lower --fps"
    fitting = [name for name, other in DEVICES.items() if most_frames(config, tokenizer, fps, other, itemsize=itemsize)]
    return f"the model itself does not fit; it does on {', '.join(fitting)}"


def most_frames(
    config: ModelConfig, tokenizer: Tokenizer | None, fps: float, device: Device, *,
    compression: int = 4, itemsize: int = 2,
) -> int:
    """The most frames that fit a device, in whole strides; 0 if the model itself does not."""
    step = device.sizes.stride * config.frames_per_group

    def fits(strides: int) -> bool:
        layout = layout_for(config, tokenizer, strides * step, fps)
        needed = sum(_bytes(config, layout, compression, itemsize, device.sizes).values())
        return needed <= USABLE * device.memory_gb * 1e9

    low, high = 0, 1
    while high <= 4096 and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * step
