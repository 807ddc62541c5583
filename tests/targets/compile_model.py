"""Compile the real-size model for a machine that is not here; print one JSON line per program.

    python tests/targets/compile_model.py v5p
    python tests/targets/compile_model.py v5e int8
    python tests/targets/compile_model.py v5e int8 4096 int8
    python tests/targets/compile_model.py t4 int8 4096 int8 2
    python tests/targets/compile_model.py v5e int8 9000 int8 1 host
    python tests/targets/compile_model.py v5e int8 10000 wide model=4,sequence=2
    python tests/targets/compile_model.py v5e int8 10000 wide 1 device relevance

Arguments: the machine ("here" for the one that is present), and if wanted the weights, the frames, the cache (wide or int8), the mesh (a number of devices over which
the model is split, or as `--mesh` takes it), where the dense level is (device or host), and how the names of the programs begin that are compiled.
Bytes are those of one device, and lines have the number of collectives in each program.

Programs: a pre-fill stride, the pooling of the sparse level, the relevance pass and a question with its answer over
the memory of 2,048 frames, and the vision half. With the dense level in host memory, one layer of a stride and the pooling of
one layer take the place of all layers. Weights are abstract. Every line has the memory that XLA plans, the
device's, the prediction of `vxl2_jax.planning.memory_model`, the copies that the program makes of weights and caches, and how often each of its loops runs.
A program that does not fit is compiled with half the layers.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import step
from jax.sharding import PartitionSpec as P
from machines import MEMORY_GB, machine, topology  # first: it sets what JAX reads when it is imported

from pallas_kernels import attention, kv_cache
from pallas_kernels.attention import KVCache
from vxl2_jax import decode, prefill, relevance, sequence_parallel, tensor_parallel
from vxl2_jax import hardware as suits
from vxl2_jax.cache import plan, pooling, views
from vxl2_jax.cache.pooling import sparse_level, sparse_level_of_shards
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.config import ModelConfig, video_xl_2
from vxl2_jax.encode import encode_groups
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.memory import VideoMemory
from vxl2_jax.models import quantised
from vxl2_jax.models.quantised import INT8, WIDE
from vxl2_jax.options import DEVICE, HOST
from vxl2_jax.placement import Placement
from vxl2_jax.planning import memory_model
from vxl2_jax.planning.memory_model import Workload
from vxl2_jax.relevance import selection
from vxl2_jax.sampling import Sampling
from vxl2_jax.storage.host_level import HostLevel
from vxl2_jax.storage.memory_file import CacheShape
from vxl2_jax.storage.placed_level import PlacedLevel
from vxl2_jax.tensor_parallel import MeshShape, PerDevice

CONFIG, RULE = video_xl_2(), PrefillRule()
FRAMES, COMPRESSION, CHUNK_SIZE, TOP_K = 2048, 4, 4, 4
QUESTION, ANSWER = 80, 16
_READ_OF_LAST = ("norm_attention", "key", "value")  # what pre-filling reads of the last layer


class Program(NamedTuple):
    """A program: its name, a function that lowers it, its predicted peak memory in bytes, the arrays that it reads and should
    not copy, which of them are caches, and of one that decodes the bytes of weights and of the cache that a step needs."""

    name: str
    lower: Callable[[], Any]
    predicted: int
    arrays: Sequence[tuple[int, ...]] = ()
    caches: Sequence[tuple[int, ...]] = ()
    step: tuple[int, int] | None = None


def real_size(
    device: Any, layers: int, weights: str = WIDE, frames: int = FRAMES, cache: str = WIDE, place: str = DEVICE
) -> tuple[ModelConfig, Layout, Workload]:
    """The model with this number of language model layers, and the workload as the device runs it."""
    config = dataclasses.replace(CONFIG, language=dataclasses.replace(CONFIG.language, layers=layers))
    dtype, width = dtype_for(device), config.language.head_width
    cached = jnp.dtype(jnp.int8) if cache == INT8 else dtype
    kernel = attention.choose_kernel(dtype=dtype, width=width, cache_dtype=cached, device=device).kernel
    settings = Workload(
        compression=COMPRESSION,
        chunk_size=CHUNK_SIZE,
        top_k=TOP_K,
        question_tokens=QUESTION,
        max_new_tokens=ANSWER,
        weights=weights,
        cache=cache,
        dense_level=place,
        sizes=suits.sizes_for(device),
        kernel=kernel,
        compiler=suits.compiler_for(device),
    )
    return config, Layout(14, (8,) * (frames // 4), config.visual_tokens), settings


def dtype_for(device: Any) -> Any:
    """The dtype that the model has on a device."""
    return jnp.dtype(suits.default_dtype(device))


def programs(
    abstract: Callable,
    config: ModelConfig,
    layout: Layout,
    settings: Workload,
    dtype: Any,
    mesh: MeshShape = MeshShape(),
) -> Iterator[Program]:
    """The programs of watching and asking.

    abstract: a function that makes a ShapeDtypeStruct on the devices. mesh: over which model and video are split.
    """
    ways, placement = mesh.model, None
    if mesh.sequence > 1:
        placement = Placement(layout, mesh.sequence, settings.sizes.stride)

    def specs_of(tree):
        return jax.tree.map(
            lambda node: (
                jax.tree.map(lambda _: P("sequence"), node)
                if isinstance(node, PerDevice)
                else tensor_parallel.specs_of(node)
            ),
            tree,
            is_leaf=lambda node: isinstance(node, (PerDevice, KVCache)),
        )

    def placed(tree, specs=None):
        if mesh.devices == 1:
            return jax.tree.map(lambda a: abstract(a.shape, a.dtype), tree)
        specs = jax.tree.structure(tree).flatten_up_to(specs_of(tree) if specs is None else specs)
        leaves, structure = jax.tree.flatten(tree)
        return structure.unflatten([abstract(a.shape, a.dtype, spec) for a, spec in zip(leaves, specs, strict=True)])

    params = huggingface.abstract_params(config, dtype, settings.weights)
    lm, sizes, kernel = config.language, settings.sizes, settings.kernel
    if settings.compiler.separate_layers:
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), params["language"]["layers"])
        params["language"]["layers"] = (one,) * lm.layers
    params = placed(params, tensor_parallel.param_specs(params, ways) if mesh.devices > 1 else None)
    layer, unread_of_last = params["language"]["layers"], 0
    if settings.compiler.separate_layers:
        layer = layer[0]
        unread_of_last = bytes_of({name: part for name, part in layer.items() if name not in _READ_OF_LAST})
    settings = settings._replace(devices=ways, sequence=mesh.sequence)
    made, cache = memory_model.programs(config, layout, settings), memory_model.caches(config, layout, settings)
    # A program keeps only the arguments that it reads.
    language = bytes_of({name: part for name, part in params["language"].items() if name != "head"})
    head = bytes_of(params["language"].get("head", ()))
    unread = bytes_of(params["language"]["norm"]) + unread_of_last

    weights = shapes((layer, params["language"]["embed"]))

    cached = jnp.dtype(jnp.int8) if settings.cache == INT8 else dtype
    if placement:
        room = sequence_parallel.shape_for(placement, dtype=cached)
    else:
        room = prefill.shape_for(layout, sizes.stride, dtype=cached)
    host, held = settings.dense_level == HOST, 1 if settings.dense_level == HOST else lm.layers
    slots = room._replace(visual=room.visual * mesh.sequence)
    streams = jax.eval_shape(lambda: prefill.empty_streams(held, lm.kv_heads, lm.head_width, slots, cached))
    sharded = jax.tree.map(
        lambda spec, s: jax.tree.map(lambda _: spec, s),
        sequence_parallel.STREAMS,
        streams,
        is_leaf=lambda n: isinstance(n, P),
    )
    streams = placed(streams, sharded if placement else None)
    here = {name: held * count // lm.layers for name, count in cache.items()}  # of the layers that a program has
    no_ids = np.zeros(layout.global_length, np.int32)
    if placement:
        stride = placed(sequence_parallel.plan_strides(placement, RULE, no_ids, room)[0])
        shape = (mesh.sequence, sizes.stride, config.visual_tokens, lm.width)
        tokens = PerDevice(abstract(shape, dtype, P("sequence")))
    else:
        stride = placed(prefill.plan_strides(layout, RULE, no_ids, room)[0])
        tokens = abstract((sizes.stride, config.visual_tokens, lm.width), dtype)
    if host:
        stacked = not settings.compiler.separate_layers
        layers = params["language"]["layers"] if stacked else layer
        x = placed(
            jax.ShapeDtypeStruct((stride.positions.shape[0], lm.width), jnp.float32 if dtype == jnp.float16 else dtype)
        )
        run = partial(prefill.run_stride_layer.lower, stacked=stacked, keys_only=False, kernel=kernel)
        yield Program(
            "pre-fill layer",
            lambda: run({"language": {"layers": layers}}, config, abstract((), jnp.int32), x, streams, stride),
            bytes_of(layers) + here["dense"] + made["pre-fill"],
            weights + shapes(streams),
            shapes(streams),
        )
    else:
        yield Program(
            "pre-fill stride",
            lambda: (sequence_parallel if placement else prefill).run_stride.lower(
                params, config, streams, stride, tokens, kernel=kernel
            ),
            language - unread + cache["dense"] + made["pre-fill"],
            weights + shapes(streams),
            shapes(streams),
        )

    def make(s):
        return sparse_level(s, layout, settings.compression, lm.rope_theta)

    if placement:
        room_of_sparse = mesh.sequence * pooling.sharded_capacity(placement, settings.compression, cached)
        sparse = jax.eval_shape(lambda: kv_cache.zeros(lm.layers, lm.kv_heads, room_of_sparse, lm.head_width, cached))
        level = PlacedLevel(streams, placement)
        pool = recorded(
            "_pool_shards", pooling, lambda: sparse_level_of_shards(level, settings.compression, lm.rope_theta)
        )
    else:
        sparse, pool = traced(make, "_pool", pooling, streams)
        sparse = jax.tree.map(lambda a: jax.ShapeDtypeStruct((lm.layers, *a.shape[1:]), a.dtype), sparse)
    yield Program(
        "pooling",
        lambda: pool(lambda args: (streams, *placed(args[1:]))),
        here["dense"] + here["sparse"] + made["pooling"],
    )

    sparse = placed(sparse, jax.tree.map(lambda _: tensor_parallel.SHARDED_CACHE, sparse) if placement else None)
    if host:
        shape = CacheShape(lm.layers, lm.kv_heads, lm.head_width, cached.name)
        streams = HostLevel.empty(layout, shape, room)

    remembered = VideoMemory(
        dense=PlacedLevel(streams, placement) if placement else streams,
        sparse=sparse,
        layout=layout,
        rule=RULE,
        compression=settings.compression,
        seconds=(),
        end_s=0.0,
        frames=config.frames_per_group * layout.groups,
        rope_theta=lm.rope_theta,
        placement=placement,
    )
    ids, count = abstract((1, settings.question_rows), jnp.int32), abstract((1,), jnp.int32)
    view = views.prefix_view(remembered, kernel)
    view = view._replace(step_table=placed(view.step_table), question_table=placed(view.question_table))
    table = relevance.chunk_table(remembered, settings.chunk_groups(layout))
    slots, sizes_of_chunks = placed(table.slots), table._asdict()
    del sizes_of_chunks["slots"]
    yield Program(
        "relevance pass",
        lambda: relevance.chunk_attention.lower(
            params, config, view, slots, ids, count, **sizes_of_chunks, kernel=kernel
        ),
        language - (unread - bytes_of(layer["query"]) * (unread_of_last > 0)) + cache["sparse"] + made["relevance"],
        weights + shapes(sparse),
        shapes(sparse),
    )

    chunks = layout.chunks(settings.chunk_groups(layout))
    interior = np.arange(2, chunks, max(chunks // settings.top_k, 1))[: settings.top_k]
    dense = selection.dense_chunks(chunks, interior)
    loaded = memory_model.loaded_bytes(config, layout, settings) if host else cache["dense"]
    with jax.default_device(jax.devices("cpu")[0]):  # chunks are loaded from the host
        mixture = views.mixed_view(remembered, settings.chunk_groups(layout), dense[None], kernel)
    mixture = mixture._replace(
        streams=mixture.streams if placement else placed(mixture.streams),
        step_table=placed(mixture.step_table),
        question_table=placed(mixture.question_table),
    )
    keys = plan.plan_segments(layout, settings.compression, settings.chunk_groups(layout), dense).length
    kept = (
        lm.layers * lm.kv_heads * keys * 2 * (lm.head_width * jnp.dtype(cached).itemsize + 4 * (settings.cache == INT8))
    )
    key = placed(jax.eval_shape(lambda: jax.random.key(0)))
    yield Program(
        "question and answer",
        lambda: decode.generate.lower(
            params, config, mixture, ids, count, Sampling(), key, max_new=settings.max_new_tokens, kernel=kernel
        ),
        language + head + loaded + cache["sparse"] + made["question"],
        weights + shapes(mixture.streams),
        shapes(mixture.streams),
        None if mesh.devices > 1 else (bytes_of(params["language"]["layers"]) + head, kept),
    )

    side, per_group = config.vision.image_size, config.frames_per_group
    shape = (sizes.vision_groups * mesh.sequence * per_group, side, side, 3)
    everywhere = P(("sequence", "model")) if placement else P("model")
    frames = abstract(shape, jnp.uint8, everywhere) if mesh.devices > 1 else abstract(shape, jnp.uint8)
    yield Program(
        f"vision half, {frames.shape[0]} frames",
        lambda: encode_groups.lower(params, config, frames, groups_at_once=sizes.vision_groups // ways, kernel=kernel),
        bytes_of([params[part] for part in ("vision", "dts", "projector")]) + made["vision"],
    )


def bytes_of(tree: Any) -> int:
    """Bytes of the arrays of a tree on one device."""
    return quantised.bytes_of(jax.tree.map(_on_one_device, tree))


def _on_one_device(leaf: Any) -> jax.ShapeDtypeStruct:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return jax.ShapeDtypeStruct(shape, leaf.dtype)


def shapes(tree: Any) -> list[tuple[int, ...]]:
    """The shapes of the arrays in a tree on one device, and of one layer of those that have several."""
    whole = [_on_one_device(leaf).shape for leaf in jax.tree.leaves(tree)]
    return whole + [shape[1:] for shape in whole if len(shape) > 2]


def traced(call: Callable, name: str, module: Any, argument: Any) -> tuple[Any, Callable[[Callable], Any]]:
    """The shape of `call(argument)`, and a function of `placed` that lowers the jitted `module.name` inside the call."""
    jitted, seen = getattr(module, name), {}

    def record(*args: Any, **options: Any) -> Any:
        seen["call"] = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), args), options
        return jitted(*args, **options)

    setattr(module, name, record)
    try:
        shape = jax.eval_shape(call, argument)
    finally:
        setattr(module, name, jitted)
    args, options = seen["call"]
    return shape, lambda placed: jitted.lower(*placed(args), **options)


def recorded(name: str, module: Any, call: Callable) -> Callable[[Callable], Any]:
    """As `traced`, of a program that runs on a mesh only: its arguments are recorded, and it is not run."""
    program, seen = getattr(module, name), {}

    def record(*args: Any, **options: Any) -> None:
        seen["call"] = args, options

    setattr(module, name, record)
    try:
        call()
    finally:
        setattr(module, name, program)
    args, options = seen["call"]
    return lambda placed: program.lower(*placed(args), **options)


def main(
    name: str,
    weights: str = WIDE,
    frames: str = str(FRAMES),
    cache: str = WIDE,
    ways: str = "1",
    place: str = DEVICE,
    only: str = "",
) -> None:
    """Compile every program, or those whose name begins with `only`, and print the results."""
    device = topology(name).devices[0]
    limit = (suits.memory_bytes(device) or 0) / 1e9 if name == "here" else MEMORY_GB[name]
    whole, dtype = CONFIG.language.layers, dtype_for(device)

    def sized(layers: int) -> tuple[ModelConfig, Layout, Workload]:
        return real_size(device, layers, weights, int(frames), cache, place)

    mesh = MeshShape(int(ways)) if ways.isdecimal() else tensor_parallel.parse(ways)
    with machine(name, mesh) as abstract:
        half = {program.name: program for program in programs(abstract, *sized(whole // 2), dtype, mesh)}
        for program in programs(abstract, *sized(whole), dtype, mesh):
            if not program.name.startswith(only):
                continue
            start = time.monotonic()
            found = {
                "machine": name,
                "weights": weights,
                "cache": cache,
                "frames": int(frames),
                "mesh": str(mesh),
                "devices": mesh.devices,
                "dense_level": place,
                "program": program.name,
                "layers": whole,
                "memory_gb": limit,
            }
            try:
                found |= planned(program, limit)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                # It does not fit. That half of it compiles shows that memory is the only reason.
                found |= planned(half[program.name], limit)
                found |= {"refused": str(error).splitlines()[0], "layers": whole // 2, "fits": False}
            print(json.dumps(found | {"seconds": round(time.monotonic() - start, 1)}), flush=True)


def planned(program: Program, limit: float) -> dict:
    """The memory that XLA plans for a program and the predicted memory, in GB, and its copies. limit: the device's memory.

    Of a program that decodes, "step_gb" is what a step reads and writes (`step.traffic`, and the chosen cache once),
    "step_over_least" that divided by the weights and the chosen cache, and "step_kcycles" XLA's estimate for a TPU in
    thousands.
    """
    compiled = program.lower().compile()
    text = compiled.as_text()
    memory = compiled.memory_analysis()
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak = arguments + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes

    def gb(count):
        return round(count / 1e9, 3)

    found = {}
    if program.step:
        weights, cache = program.step
        traffic = step.traffic(text, ANSWER - 1) + cache
        found = {"step_gb": gb(traffic), "step_over_least": round(traffic / (weights + cache), 4)}
        found |= {"step_kcycles": step.cycles(text, ANSWER - 1) // 1000}
    return found | {
        "arguments_gb": gb(arguments),
        "temporary_gb": gb(temporary),
        "peak_gb": gb(peak),
        "predicted_gb": gb(program.predicted),
        "predicted_over_peak": round(program.predicted / peak, 4),
        "fits": peak <= limit * 1e9,
        "copies": hlo.copies(text, program.arrays, caches=program.caches),
        "collectives": hlo.collectives(text),
        "loops": hlo.loops(text),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
