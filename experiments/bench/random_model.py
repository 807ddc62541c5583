"""A model of the released sizes with random weights: what speed and memory need, where the weights are not at hand."""

from __future__ import annotations

from typing import Any

import jax

from experiments.bench import weights
from pallas_kernels import attention
from vxl2_jax import hardware
from vxl2_jax.api import Model
from vxl2_jax.config import ModelConfig
from vxl2_jax.text import prompt

_PREFIX = 14  # tokens of Qwen2.5 before a video


class CountingTokenizer:
    """As many tokens as Qwen2.5 makes of the texts around a video; which ones does not matter to random weights."""

    def encode(self, text: str) -> list[int]:
        """The prefix is 14 tokens; of a timestamp "Time" is one, and so is every character after it."""
        count = _PREFIX if text == prompt.prefix_text() else len(text) - len("Time") + 1
        return list(range(count))


def draw(config: ModelConfig, *, dtype: Any, seed: int, name: str = "auto") -> Model:
    """A model as `vxl2_jax.load` gives it: its parts drawn on the device, the attention kernel chosen and tried.

    Raises ValueError for an attention kernel that cannot run here, and when the chosen one fails its trial: the
    figures of a kernel put in its place would pass for its own.
    """
    device, width = jax.devices()[0], config.language.head_width
    kernel, reason = attention.choose_kernel(name, dtype=dtype, width=width, device=device)
    if kernel != attention.REFERENCE and (wrong := attention.self_test(kernel, dtype=dtype, width=width)):
        raise ValueError(f"attention kernel {kernel.name} failed its trial on this machine: {wrong}")
    params = weights.draw(config, ["vision", "dts", "projector", "language"], dtype, seed)
    return Model(
        "random weights", config, params, CountingTokenizer(), "random", kernel, reason, hardware.sizes_for(device)
    )
