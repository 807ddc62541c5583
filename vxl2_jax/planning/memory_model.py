"""Peak live device memory, phase by phase, from the shapes that the code makes.

Weights and caches are counted exactly, including the rounded capacities of `prefill.shape_for` and of the sparse level. Of
a program's temporaries only the largest arrays that are live together are counted. Compilers differ in what they fuse, so
the count is rather too large than too small. `tests/targets` compares it with what XLA plans for six machines,
`tests/test_planning.py` with what it plans for a CPU.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from pallas_kernels import kv_cache
from pallas_kernels.attention import REFERENCE, Kernel
from pallas_kernels.attention.tile_sizes import TileSizes
from pallas_kernels.decode import QUESTION_ROWS, item_count
from vxl2_jax import offload, prefill, sequence_parallel, tensor_parallel
from vxl2_jax.buckets import bucket, round_up
from vxl2_jax.cache.pooling import sharded_capacity, sparse_capacity
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.config import ModelConfig
from vxl2_jax.hardware import LARGE, BatchSizes, CompilerTraits
from vxl2_jax.layout import Layout, pooled
from vxl2_jax.models import quantised
from vxl2_jax.options import DEVICE, HOST, AskOptions, WatchOptions, chunk_size_for
from vxl2_jax.placement import Placement

_F32 = 4


class Workload(NamedTuple):
    """How a video is watched and one question asked, as far as memory is concerned.

    Attributes:
      question_tokens: of the question and the prompt around it.
      itemsize: bytes of a wide weight, an activation and a wide cached number.
      weights: one of `models.quantised.SETTINGS`; cache: one of `options.CACHES`.
      dense_level: DEVICE or HOST of `options.PLACES`.
      devices: over how many the model is sharded (see `tensor_parallel`); sequence: over how many the video is (see
        `sequence_parallel`). All bytes are those of one device.
      sizes, kernel, compiler: the batch sizes, the attention kernel and what is known of XLA on the device.
    """

    compression: int = WatchOptions.compression
    chunk_size: int | None = AskOptions.chunk_size
    top_k: int | None = AskOptions.top_k
    question_tokens: int = 68
    max_new_tokens: int = AskOptions.max_new_tokens
    itemsize: int = 2
    weights: str = quantised.WIDE
    cache: str = quantised.WIDE
    dense_level: str = DEVICE
    devices: int = 1
    sequence: int = 1
    sizes: BatchSizes = LARGE
    kernel: Kernel = REFERENCE
    compiler: CompilerTraits = CompilerTraits()

    @property
    def mesh(self) -> tensor_parallel.MeshShape:
        """The mesh of devices."""
        return tensor_parallel.MeshShape(self.devices, self.sequence)

    def chunk_groups(self, layout: Layout) -> int:
        """Groups per chunk of a video."""
        return self.chunk_size or chunk_size_for(layout.groups)

    @property
    def cache_dtype(self) -> str:
        """The dtype of cached keys and values."""
        return "int8" if self.cache == quantised.INT8 else f"float{8 * self.itemsize}"

    @property
    def question_rows(self) -> int:
        """Tokens that a question is padded to."""
        return self.sizes.question_length(self.question_tokens)


@cache
def weights_bytes(config: ModelConfig, weights: str, itemsize: int, devices: int = 1) -> int:
    """Bytes of all parameters in a setting of `models.quantised` on one of the devices over which they are sharded."""
    params = huggingface.abstract_params(config, f"float{8 * itemsize}", weights)
    return quantised.bytes_of(params) if devices == 1 else tensor_parallel.shard_bytes(params, devices)


def token_bytes(config: ModelConfig, workload: Workload) -> int:
    """Bytes of the keys and values of one token in all layers."""
    lm = config.language
    return lm.layers * lm.kv_heads * kv_cache.row_bytes(lm.head_width, workload.cache_dtype)


def cached_tokens(layout: Layout, workload: Workload) -> tuple[int, int]:
    """(tokens that a question loads, tokens of the dense level)."""
    if workload.top_k is None:
        return layout.length, layout.length
    return layout.mixed_length(workload.compression, workload.chunk_groups(layout), workload.top_k), layout.length


def caches(config: ModelConfig, layout: Layout, workload: Workload) -> dict[str, int]:
    """Bytes of the dense and of the sparse level, wherever they are."""
    config = tensor_parallel.shard_config(config, workload.mesh)
    capacity, slot = _capacity(layout, workload), token_bytes(config, workload)
    if workload.sequence == 1:
        sparse = sparse_capacity(layout, workload.compression, workload.cache_dtype)
    else:
        sparse = sharded_capacity(_placement(layout, workload), workload.compression, workload.cache_dtype)
    return {"dense": slot * (capacity.visual + capacity.global_), "sparse": slot * sparse}


def host_bytes(config: ModelConfig, layout: Layout, workload: Workload) -> int:
    """Bytes of the dense level in host memory: of all devices' shares."""
    return caches(config, layout, workload._replace(devices=1))["dense"] if workload.dense_level == HOST else 0


def loaded_bytes(config: ModelConfig, layout: Layout, workload: Workload) -> int:
    """Bytes of the chunks that one question loads from a dense level in host memory."""
    if workload.top_k is None:
        return caches(config, layout, workload)["dense"]
    groups = min((workload.top_k + 2) * workload.chunk_groups(layout), layout.groups)
    lengths = groups * layout.visual, layout.prefix + groups * max(layout.timestamp_lengths, default=0)
    slots = sum(kv_cache.aligned(bucket(length, minimum=128), workload.cache_dtype) for length in lengths)
    return slots * token_bytes(tensor_parallel.shard_config(config, workload.mesh), workload)


def programs(config: ModelConfig, layout: Layout, workload: Workload) -> dict[str, int]:
    """Bytes of the temporaries of each program."""
    config = tensor_parallel.shard_config(config, workload.mesh)
    return {
        "vision": _vision(config, workload),
        "pre-fill": _stride(config, layout, workload),
        "pooling": _pooling(config, layout, workload),
        "relevance": _relevance(config, layout, workload),
        "question": _question(config, workload),
    }


def phases(
    config: ModelConfig, layout: Layout, workload: Workload, weights: int | None = None
) -> dict[str, dict[str, int]]:
    """Live bytes by phase and part (weights, dense, sparse, activations).

    weights: bytes of the weights if they are known; otherwise those of `workload.weights`.
    """
    if weights is None:
        weights = weights_bytes(config, workload.weights, workload.itemsize, workload.devices)
    cache, program = caches(config, layout, workload), programs(config, layout, workload)
    # The tokens of the last stride are kept until the next ones exist, and then for extending the memory.
    tokens = _stride_tokens(config, workload)
    dense, pooled_layer = dict.fromkeys(program, cache["dense"]), 0
    if workload.dense_level == HOST:
        layer, pooled_layer = (cache[name] // config.language.layers for name in ("dense", "sparse"))
        loaded = loaded_bytes(config, layout, workload)
        dense = {"vision": 0, "pre-fill": offload.BUFFERS * layer, "pooling": layer, "relevance": 0, "question": loaded}

    def phase(name: str, kept: int, *levels: str) -> dict[str, int]:
        live = {"dense": dense[name], **{level: cache[level] for level in levels}}
        return {"weights": weights, **live, "activations": program[name] + kept}

    return {
        "vision": phase("vision", 2 * tokens),
        "pre-fill": phase("pre-fill", 0),
        "pooling": phase("pooling", tokens + pooled_layer, "sparse"),
        "relevance": phase("relevance", tokens, "sparse"),
        "question": phase("question", tokens, "sparse"),
    }


def _capacity(layout: Layout, workload: Workload) -> prefill.PrefillShape:
    if workload.sequence > 1:
        return sequence_parallel.shape_for(_placement(layout, workload), dtype=workload.cache_dtype)
    return prefill.shape_for(layout, workload.sizes.stride, dtype=workload.cache_dtype)


def _placement(layout: Layout, workload: Workload) -> Placement:
    return Placement(layout, workload.sequence, workload.sizes.stride)


def _sums(workload: Workload) -> int:
    """Bytes of a sum of integer products before it is scaled; others are scaled or cast where they are computed."""
    return _F32 if workload.weights == quantised.W8A8 else 0


def _stride_tokens(config: ModelConfig, workload: Workload) -> int:
    return workload.sizes.stride * config.visual_tokens * config.language.width * workload.itemsize


def _layer_weights(config: ModelConfig, workload: Workload) -> int:
    """The weights of one decoder layer, if they are copied out of the stack of layers."""
    lm, compiler = config.language, workload.compiler
    projections = 2 * lm.width * lm.head_width * (lm.heads + lm.kv_heads)
    copied = compiler.slices_layers and not compiler.separate_layers
    return workload.itemsize * (projections + 3 * lm.width * lm.mlp) if copied else 0


def _vision(config: ModelConfig, workload: Workload) -> int:
    """A batch of frames in, visual tokens out; in between, the larger of a block's two halves.

    MLP: its hidden layer and three residual streams. Attention: queries, keys, values and output, padded for the kernel,
    and three streams. Without tiles there are whole logits in fp32, and again where they are cast.
    """
    vision, item = config.vision, workload.itemsize
    groups = -(-workload.sizes.vision_groups // workload.devices)
    frames, patches = groups * config.frames_per_group, vision.grid**2
    stream = frames * patches * vision.width * item
    mlp = frames * patches * vision.mlp * (item + _sums(workload)) + 3 * stream
    if workload.kernel.full is None:
        logits = frames * vision.heads * patches**2
        attention = logits * (_F32 + (item if item < _F32 else 0)) + 4 * stream
        # One block copied out of the stack, and DTS's two convolution kernels, rearranged ahead of time.
        block = item * vision.width * (4 * vision.width + 2 * vision.mlp)
        attention, mlp, kernels = attention + block, mlp + block, 2 * 27 * vision.width**2 * item
    else:
        width = max(workload.kernel.full_width, vision.width // vision.heads)
        attention = 4 * frames * vision.heads * round_up(patches, 16) * width * item + 3 * stream
        kernels = 0
    pixels = frames * vision.image_size**2 * 3
    tokens = groups * config.visual_tokens * config.language.width * item
    return pixels + tokens + max(mlp, attention) + kernels


def _stride(config: ModelConfig, layout: Layout, workload: Workload) -> int:
    """Visual tokens in; a layer's weights, both halves of the gated MLP and two residual streams."""
    lm, stride = config.language, workload.sizes.stride
    rows = stride * layout.visual + _capacity(layout, workload).global_rows
    tiles = workload.kernel.tiles_for(rows * lm.heads // lm.kv_heads)
    own = workload.itemsize * rows * (2 * lm.mlp + 2 * lm.width) + rows * lm.mlp * _sums(workload)
    own += _logits(config, tiles, workload)
    return _stride_tokens(config, workload) + own + _layer_weights(config, workload)


def _logits(config: ModelConfig, tiles: TileSizes, workload: Workload) -> int:
    """Logits and weights of the tiles that the reference works on in parallel; those of kernels are on the chip."""
    if not workload.kernel.reads_by_rows:
        return 0
    return 2 * config.language.kv_heads * tiles.parallel * tiles.rows * tiles.keys * _F32


def _pooling(config: ModelConfig, layout: Layout, workload: Workload) -> int:
    """Rotation tables, the pooled keys of a head and, where they are not fused, all its un-rotated keys in fp32 with their
    halves, and the row of global and pooled keys that is gathered from."""
    lm, capacity, compiler = config.language, _capacity(layout, workload), workload.compiler
    slots = capacity.visual // layout.visual * pooled(layout.visual, workload.compression)
    whole, half = round_up(lm.head_width, compiler.lanes), round_up(lm.head_width // 2, compiler.lanes)
    tables = 2 * (capacity.visual + slots + capacity.global_) * half * _F32
    total = tables + slots * whole * _F32
    if not compiler.fuses_pooling:
        total += capacity.visual * (whole + 2 * half) * _F32
        total += (capacity.global_ + slots) * whole * workload.itemsize
    return total


def _tail(config: ModelConfig, workload: Workload, new_tokens: int) -> int:
    tokens = workload.question_rows + new_tokens
    return token_bytes(config, workload) * kv_cache.aligned(tokens, workload.cache_dtype)


def _partial_results(config: ModelConfig, workload: Workload, segments: int) -> int:
    """What a question leaves per item or per segment before merging."""
    lm, kernel = config.language, workload.kernel
    rows = workload.question_rows * (lm.heads // lm.kv_heads)
    if kernel.reads_by_rows:
        # Queries, their rotation, and outputs in tiles, sorted and in order, for every segment and the tail.
        numbers = (segments + 1) * rows * lm.kv_heads * lm.head_width
        tiles = kernel.segment_tiles_for((segments + 1) * rows, 0)
        return numbers * (2 * workload.itemsize + 3 * _F32) + _logits(config, tiles, workload)
    tile = kernel.tiles_for(rows).rows
    items = item_count(kernel, lm.kv_heads, segments, QUESTION_ROWS) + 1
    return lm.kv_heads * items * -(-rows // tile) * tile * lm.head_width * _F32


def _relevance(config: ModelConfig, layout: Layout, workload: Workload) -> int:
    """A layer's weights, two sets of logits of the chunks of a step, three of all chunks' shares, the question's tail."""
    rows, size = config.language.heads * workload.question_rows, workload.chunk_groups(layout)
    width = bucket(size * (layout.pooled(workload.compression) + max(layout.timestamp_lengths, default=0)))
    kernel, at_once = workload.kernel, 2 * (workload.kernel.chunks_per_step or 1)
    if kernel.chunks_per_step is None and config.language.head_width == 128:  # one call, whose logits stay on the chip
        at_once = 0
    steps = at_once * rows * width * _F32
    shares = 3 * bucket(layout.chunks(size)) * rows * _F32
    own = _partial_results(config, workload, 1) + _tail(config, workload, 0)
    return _layer_weights(config, workload) + steps + shares + own


def _question(config: ModelConfig, workload: Workload) -> int:
    """A layer's weights, partial results, the tail of question and answer, and four arrays of logits."""
    segments = 1 if workload.top_k is None else bucket(2 * workload.top_k + 3)
    own = _partial_results(config, workload, segments) + _tail(config, workload, workload.max_new_tokens)
    return _layer_weights(config, workload) + own + 4 * config.language.vocabulary * _F32
