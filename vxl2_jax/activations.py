"""The size of a model's activations, layer by layer: where they stop being finite, a weight or a dtype is wrong."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from pallas_kernels.attention import Kernel
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import dts, qwen2, siglip, video_xl_2
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.runtime import Runtime
from vxl2_jax.text import prompt

DTS_LAYERS = ("encoding", *(f"{part}_{half}" for half in range(2) for part in ("spatial", "temporal", "halve")))


def largest_by_layer(model: Runtime, frames: UInt8[np.ndarray, "F px px 3"], question: str) -> dict[str, float]:
    """The largest absolute value after each layer, in the order of computation; NaN or infinite where one of them is.

    Of the language model's layers it is that of queries, keys, values and attention, which is causal over the visual
    tokens and a question.

    Args:
      frames: F is a multiple of 4; all are computed at once.
      question: text after them.
    """
    ids = np.asarray(prompt.suffix_ids(model.tokenizer, question), np.int32)
    with model.precision():
        found = _largest(model.params, model.config, frames, ids, model.kernel)
    names = [
        *(f"vision.layers.{layer}" for layer in range(model.config.vision.layers)),
        *(f"dts.{name}" for name in DTS_LAYERS),
        "projector",
        *(f"language.layers.{layer}" for layer in range(model.config.language.layers)),
        "logits",
    ]
    return dict(zip(names, np.asarray(found, np.float64).tolist(), strict=True))


@partial(jax.jit, static_argnames=("config", "kernel"))
def _largest(
    params: Any, config: ModelConfig, frames: UInt8[Array, "F px px 3"], ids: Int[Array, " N"], kernel: Kernel
) -> Float[Array, " layers"]:
    def largest(*arrays: Array) -> Array:
        return jnp.max(jnp.stack([jnp.max(jnp.abs(a.astype(jnp.float32))) for a in arrays]))

    pixels = siglip.normalise(frames, params["vision"]["position"].dtype)
    features, kept = siglip.SigLIP(config.vision, kernel).apply(
        {"params": params["vision"]}, pixels, capture_intermediates=_is_block, mutable=["intermediates"]
    )
    (blocks,) = jax.tree.leaves(kept)  # [layers, F, patches, width]
    steps: list[Array] = []
    grouped = dts.regroup(dts.resize(features, config.vision.grid, config.resized_grid), config.frames_per_group)
    module = dts.DTS(config.norm_groups, config.max_relative)
    maps: Any = module.apply({"params": params["dts"]}, grouped, steps)
    visual = video_xl_2.project(params, config, maps)

    lm, language = config.language, params["language"]
    asked = qwen2.embed(language, config.language, ids)
    x = jnp.concatenate([visual.reshape(-1, lm.width).astype(asked.dtype), asked])
    cos, sin = (table[:, None] for table in rotation(jnp.arange(len(x)), lm.head_width, lm.rope_theta))

    def attend(q: Array, k: Array, v: Array, sizes: Array, layer: Array) -> tuple[Array, Array]:
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = jax.nn.dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        return out, sizes.at[layer].set(largest(q, k, v, out))

    x, sizes = qwen2.run_layers(language, lm, x, attend, jnp.zeros(lm.layers))
    logits = qwen2.logits(language, lm, x[-1:])
    of_blocks = jnp.max(jnp.abs(blocks.astype(jnp.float32)), axis=(1, 2, 3))
    return jnp.concatenate(
        [of_blocks, jnp.stack([*map(largest, steps), largest(visual)]), sizes, largest(logits)[None]]
    )


def _is_block(module: Any, method: str) -> bool:
    return isinstance(module, siglip.EncoderBlock)
