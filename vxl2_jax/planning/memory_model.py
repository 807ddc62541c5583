"""What stands in device memory at the same time, phase by phase, from the shapes that the code makes.

Weights and caches are counted exactly, with the rounding up of `prefill.capacity` and of the sparse level. Of what a
program makes for itself only the largest arrays that live together are counted; compilers differ in what they merge,
and the count leans to the larger side. `tests/targets` compares it with what XLA plans for six machines,
`tests/test_planning.py` with what it plans for a CPU.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax
import numpy as np

from pallas_kernels.attention import REFERENCE, Kernel
from pallas_kernels.decode import item_count
from vxl2_jax import prefill
from vxl2_jax.buckets import bucket, round_up
from vxl2_jax.cache.plan import mixed_length
from vxl2_jax.cache.views import QUESTION_ROWS
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.config import ModelConfig
from vxl2_jax.hardware import LARGE, BatchSizes
from vxl2_jax.layout import Layout
from vxl2_jax.memory import sparse_capacity
from vxl2_jax.relevance.repositioned import chunks_at_once

_F32 = 4


class Workload(NamedTuple):
    """How a video is watched and one question asked, as far as memory goes.

    question_tokens: of the question with what stands around it; itemsize: bytes of a weight, an activation and a
    cached number; sizes, kernel: how much the machine does at a time, and the attention kernel it does it with.
    """

    compression: int = 4
    chunk_size: int = 4
    top_k: int | None = 4
    question_tokens: int = 68
    max_new_tokens: int = 64
    itemsize: int = 2
    sizes: BatchSizes = LARGE
    kernel: Kernel = REFERENCE

    @property
    def assembles(self) -> bool:
        """Whether a mixed cache is assembled. The reference needs it; kernels read mixtures in place."""
        return self.kernel.name == "reference"

    @property
    def question_rows(self) -> int:
        """Rows that a question is padded to."""
        return bucket(self.question_tokens, minimum=64)


@cache
def parameters(config: ModelConfig) -> int:
    """How many numbers the weights are."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(huggingface.abstract_params(config)))


def token_bytes(config: ModelConfig, itemsize: int) -> int:
    """Key and value of one token in all layers."""
    lm = config.language
    return 2 * lm.layers * lm.kv_heads * lm.head_width * itemsize


def cached_tokens(layout: Layout, settings: Workload) -> tuple[int, int]:
    """(tokens that a question loads, tokens of the dense level): first, last and `top_k` interior chunks are dense."""
    if settings.top_k is None:
        return layout.length, layout.length
    return mixed_length(layout, settings.compression, settings.chunk_size, settings.top_k), layout.length


def caches(config: ModelConfig, layout: Layout, settings: Workload) -> dict[str, int]:
    """Bytes of the dense level, the sparse level and an assembled mixed cache (0 where mixtures are read in place)."""
    room, slot = prefill.capacity(layout, settings.sizes.stride), token_bytes(config, settings.itemsize)
    mixed, dense = cached_tokens(layout, settings)
    assembled = bucket(mixed, minimum=128) if settings.assembles and mixed < dense else 0
    return {
        "dense": slot * (room.visual + room.global_),
        "sparse": slot * sparse_capacity(layout, settings.compression),
        "mixed": slot * assembled,
    }


def programs(config: ModelConfig, layout: Layout, settings: Workload) -> dict[str, int]:
    """Bytes that each program holds beside weights and caches."""
    return {
        "vision": _vision(config, settings),
        "pre-fill": _stride(config, layout, settings),
        "pooling": _pooling(config, layout, settings),
        "relevance": _relevance(config, layout, settings),
        "assembling": _assembling(config, layout, settings),
        "question": _question(config, settings),
    }


def phases(
    config: ModelConfig, layout: Layout, settings: Workload, weights: int | None = None
) -> dict[str, dict[str, int]]:
    """Bytes by phase and part (weights, dense, sparse, mixed, activations) that stand at the same time.

    weights: bytes of the weights, where they are known; else they are counted at `itemsize` each.
    """
    weights = parameters(config) * settings.itemsize if weights is None else weights
    cache, program = caches(config, layout, settings), programs(config, layout, settings)
    # The tokens of the last stride are kept until the next ones are there, and then for extending the memory.
    tokens = _stride_tokens(config, settings)

    def phase(activations: int, *standing: str) -> dict[str, int]:
        return {"weights": weights, **{name: cache[name] for name in standing}, "activations": activations}

    return {
        "vision": phase(program["vision"] + 2 * tokens, "dense"),
        "pre-fill": phase(program["pre-fill"], "dense"),
        "pooling": phase(program["pooling"] + tokens, "dense", "sparse"),
        "relevance": phase(program["relevance"] + tokens, "dense", "sparse"),
        "question": phase(max(program["assembling"], program["question"]) + tokens, "dense", "sparse", "mixed"),
    }


def _stride_tokens(config: ModelConfig, settings: Workload) -> int:
    return settings.sizes.stride * config.visual_tokens * config.language.width * settings.itemsize


def _layer_weights(config: ModelConfig, settings: Workload) -> int:
    """One decoder layer, which CPUs and GPUs cut out of the stack of layers; TPUs read it in place."""
    lm = config.language
    projections = 2 * lm.width * lm.head_width * (lm.heads + lm.kv_heads)
    return 0 if settings.kernel.name == "tpu" else settings.itemsize * (projections + 3 * lm.width * lm.mlp)


def _vision(config: ModelConfig, settings: Workload) -> int:
    """A batch of frames in, visual tokens out; between them the wider of a block's two halves.

    MLP: its hidden layer and three residual streams. Attention: queries, keys, values and output, padded as the
    kernel wants them, and three streams; the reference has logits instead, fp32 and once more where they are cast.
    """
    vision, item = config.vision, settings.itemsize
    frames, patches = settings.sizes.vision_groups * config.frames_per_group, vision.grid**2
    stream = frames * patches * vision.width * item
    mlp = frames * patches * vision.mlp * item + 3 * stream
    if settings.assembles:
        logits = frames * vision.heads * patches**2
        attention = logits * (_F32 + (item if item < _F32 else 0)) + 4 * stream
        # One block cut out of the stack, and DTS's two convolution kernels, rearranged ahead of time.
        attention, mlp = (half + item * vision.width * (4 * vision.width + 2 * vision.mlp) for half in (attention, mlp))
        kernels = 2 * 27 * vision.width**2 * item
    else:
        width = max(settings.kernel.full_width, vision.width // vision.heads)
        attention = 4 * frames * vision.heads * round_up(patches, 16) * width * item + 3 * stream
        kernels = 0
    pixels = frames * vision.image_size**2 * 3
    tokens = settings.sizes.vision_groups * config.visual_tokens * config.language.width * item
    return pixels + tokens + max(mlp, attention) + kernels


def _stride(config: ModelConfig, layout: Layout, settings: Workload) -> int:
    """Visual tokens in; a layer's weights, both halves of the gated MLP and two residual streams."""
    lm, stride = config.language, settings.sizes.stride
    rows = stride * layout.visual + prefill.capacity(layout, stride).global_rows
    own = settings.itemsize * rows * (2 * lm.mlp + 2 * lm.width) + _tile(config, rows, settings)
    return _stride_tokens(config, settings) + own + _layer_weights(config, settings)


def _tile(config: ModelConfig, rows: int, settings: Workload, keys: int = 512) -> int:
    """Logits and weights of one tile of the reference's attention; the tiles of kernels are on the chip."""
    return 2 * config.language.heads * min(rows, 256) * keys * _F32 if settings.assembles else 0


def _pooling(config: ModelConfig, layout: Layout, settings: Workload) -> int:
    """Tables of rotations, the pooled keys of a layer, and, but on GPUs, which fuse it: all keys of a layer turned
    back in fp32, with their halves, and the row of global and pooled keys that is gathered from."""
    lm, room = config.language, prefill.capacity(layout, settings.sizes.stride)
    pooled = room.visual // layout.visual * (layout.visual // settings.compression)

    # A TPU's last dimension comes in lanes of 128.
    def lanes(width):
        return round_up(width, 128) if settings.kernel.name == "tpu" else width

    whole, half = lanes(lm.head_width), lanes(lm.head_width // 2)
    tables = 2 * (room.visual + pooled + room.global_) * half * _F32
    total = tables + lm.kv_heads * pooled * whole * _F32
    if settings.kernel.name in ("reference", "tpu"):
        total += lm.kv_heads * room.visual * (whole + 2 * half) * _F32
        total += lm.kv_heads * (room.global_ + pooled) * whole * settings.itemsize
    return total


def _tail(config: ModelConfig, settings: Workload, new_tokens: int) -> int:
    return token_bytes(config, settings.itemsize) * round_up(settings.question_rows + new_tokens, 16)


def _partial_results(config: ModelConfig, settings: Workload, interior: int) -> int:
    """What a question's items leave to be merged, `interior` chunks being dense between the first and the last."""
    lm, kernel = config.language, settings.kernel
    if settings.assembles:
        return _tile(config, settings.question_rows, settings)
    rows = settings.question_rows * (lm.heads // lm.kv_heads)
    tile = kernel.tiles_for(rows).rows
    items = item_count(kernel, lm.kv_heads, bucket(2 * interior + 3), QUESTION_ROWS) + 1
    return lm.kv_heads * items * -(-rows // tile) * tile * lm.head_width * _F32


def _relevance(config: ModelConfig, layout: Layout, settings: Workload) -> int:
    """A layer's weights, logits of a step of chunks twice, shares of all chunks three times, the question's own keys."""
    rows, size = config.language.heads * settings.question_rows, settings.chunk_size
    width = bucket(size * (layout.visual // settings.compression + max(layout.stamps, default=0)))
    steps = 2 * (chunks_at_once(settings.kernel) or 1) * rows * width * _F32
    shares = 3 * bucket(layout.chunks(size)) * rows * _F32
    return _layer_weights(config, settings) + steps + shares + _tail(config, settings, 0)


def _assembling(config: ModelConfig, layout: Layout, settings: Workload) -> int:
    """Of a layer's keys: what is picked from each of three stores and their sum; tables of rotations."""
    lm = config.language
    slots = caches(config, layout, settings)["mixed"] // token_bytes(config, settings.itemsize)
    return slots * (4 * lm.kv_heads * lm.head_width * settings.itemsize + lm.head_width * _F32)


def _question(config: ModelConfig, settings: Workload) -> int:
    """A layer's weights, partial results, the question's and answer's own keys, and logits (four: drawing sorts)."""
    own = _partial_results(config, settings, settings.top_k or 0) + _tail(config, settings, settings.max_new_tokens)
    return _layer_weights(config, settings) + own + 4 * config.language.vocabulary * _F32
