"""What watching a video and asking one question cost: tokens, attention pairs, operations (FLOPs), bytes.

Only matrix products are counted, a multiply-add as two operations. Bytes are the peak of the arrays that are live at the
same time (see `memory_model`). Seconds are a lower bound: operations divided by the device's peak rate.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

from vxl2_jax.cache.pooling import check_compression
from vxl2_jax.checkpoints import fetch
from vxl2_jax.config import ModelConfig, nano, video_xl_2
from vxl2_jax.errors import RequestError
from vxl2_jax.layout import Layout, PrefillRule, attention_pairs
from vxl2_jax.options import HOST
from vxl2_jax.planning import communication, memory_model
from vxl2_jax.planning.devices import DeviceSpec
from vxl2_jax.planning.memory_model import Workload
from vxl2_jax.text import prompt
from vxl2_jax.text.tokenizer import Tokenizer


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
      devices: number of devices in the mesh. `phases` has the bytes of one of them.
      host_bytes: bytes of the dense level in host memory; host_traffic: bytes that are copied from there to the devices
        while the video is watched.
      sent_bytes: bytes that each device sends to the others while the video is watched, along each axis of the mesh.
      idle: the fraction of the devices' time in which they wait for others to finish the last stride.
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
    sent_bytes: dict[str, int] = field(default_factory=dict)
    idle: float = 0.0

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
        """Lower bound of the time to watch the video and read the question, without communication."""
        return self.total_flops / (device.tflops * 1e12 * self.devices * (1 - self.idle))

    def communication_seconds(self, device: DeviceSpec) -> float:
        """Lower bound of the time that a device needs to send `sent_bytes`; NaN if the rate of its links is unknown."""
        sent = sum(self.sent_bytes.values())
        if not sent:
            return 0.0
        return sent / (device.link_gb * 1e9) if device.link_gb else math.nan

    def fits(self, device: DeviceSpec) -> bool:
        """Whether the peak fits the device's memory. That of a CPU is host memory, which then holds `host_bytes` as well."""
        shared = self.host_bytes if device.platform == "cpu" else 0
        return self.peak_bytes + shared <= device.usable_bytes


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
    """Tokens of the prefix or of a timestamp, as Qwen2.5's tokenizer counts them, without the tokenizer: in a timestamp,
    "Time" is one token, and so is every character after it."""
    return 14 if text == prompt.prefix_text() else len(text) - len("Time") + 1


@functools.lru_cache(maxsize=8)
def layout_for(config: ModelConfig, tokenizer: Tokenizer | None, frames: int, fps: float) -> Layout:
    """The layout of a video of `frames` frames at `fps` frames per second.

    Cached: a plan asks for the same lengths many times, and the layout of a video of hours takes a while to compute.

    tokenizer: None for Qwen2.5's, which `count_tokens` stands in for.
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
        workload.mesh.devices,
        memory_model.host_bytes(config, layout, workload),
        _host_traffic(layout, workload) * bytes_per_token,
        communication.sent_bytes(config, layout, rule, workload),
        _idle(layout, workload),
    )


def _idle(layout: Layout, workload: Workload) -> float:
    """Of a video that is shared by devices: the part of the last call in which some of them have no groups left."""
    if workload.sequence == 1 or not layout.groups:
        return 0.0
    per_call = workload.sizes.stride * workload.sequence
    calls, rest = divmod(layout.groups, per_call)
    longest = min(rest, workload.sizes.stride)  # of the last call, on the device that has most
    return 1 - layout.groups / ((calls * workload.sizes.stride + longest) * workload.sequence)


def _host_traffic(layout: Layout, workload: Workload) -> int:
    """Tokens whose keys and values are copied to the device while a video is watched: before each stride those of all
    earlier ones, and at the end all of them."""
    if workload.dense_level != HOST:
        return 0
    ends = [*range(workload.sizes.stride, layout.groups, workload.sizes.stride), layout.groups]
    return sum(layout.visual * group + layout.global_range(0, group)[1] for group in ends)


def _flops(config: ModelConfig, layout: Layout, pairs: int, question: int) -> dict[str, int]:
    """Operations by part. pairs: of pre-filling and of a question of `question` tokens.

    A product [m, k] × [k, n] has 2·m·k·n: 8 · tokens · width² are the four projections of full attention, and
    4 · queries · keys · width its logits and weighted sums.
    """
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
