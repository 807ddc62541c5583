"""Compile the real-size model for a machine that is not here; print one JSON line per program.

    python tests/targets/compile_model.py v5p

Programs: a pre-fill stride and a question with its answer over the memory of 2,048 frames (each reads the
whole cache as users would), the relevance pass, and the vision half. Weights are abstract. Every line has
the memory that XLA plans, against the device's; of a program that does not fit, half the layers are compiled.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from machines import MEMORY_GB, machine, topology  # first: it sets what JAX reads when it is imported

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import attention
from vxl2_jax import bases, decode, prefill, relevance, select
from vxl2_jax import machine as suits
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.config import video_xl_2
from vxl2_jax.layout import Layout, Rule
from vxl2_jax.memory import VideoMemory, sparse_level
from vxl2_jax.models.video_xl_2 import encode_frames

CONFIG, RULE = video_xl_2(), Rule()
FRAMES, COMPRESSION, CHUNK_SIZE, TOP_K = 2048, 4, 4, 4
QUESTION, ANSWER = 80, 16


def programs(abstract: Callable, device: Any, layers: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, function that lowers it) with a language model of so many layers.

    `abstract` makes a ShapeDtypeStruct placed on the device.
    """
    config = dataclasses.replace(CONFIG, language=dataclasses.replace(CONFIG.language, layers=layers))
    placed = lambda tree: jax.tree.map(lambda a: abstract(a.shape, a.dtype), tree)
    params = jax.tree.map(lambda a: abstract(a.shape, jnp.bfloat16), huggingface.abstract_params(config))
    kernel = attention.choose(dtype=jnp.bfloat16, width=config.language.head_width, device=device).kernel
    sizes = suits.sizes_for(device)

    layout = Layout(14, (8,) * (FRAMES // 4), config.visual_tokens)
    room = prefill.capacity(layout, sizes.stride)
    streams = placed(jax.eval_shape(lambda: prefill.empty(config, room, jnp.bfloat16)))
    stride = placed(prefill.plan(layout, RULE, np.zeros(layout.global_length, np.int32), room)[0])
    tokens = abstract((sizes.stride, config.visual_tokens, config.language.width), jnp.bfloat16)
    yield "pre-fill stride", lambda: prefill.run_stride.lower(params, config, streams, stride, tokens, kernel=kernel)

    sparse = placed(jax.eval_shape(lambda s: sparse_level(s, layout, COMPRESSION, config.language.rope_theta), streams))
    memory = VideoMemory(
        dense=streams, sparse=sparse, layout=layout, rule=RULE, compression=COMPRESSION, seconds=(), end_s=0.0,
        frames=FRAMES, rope_theta=config.language.rope_theta,
    )
    ids, count = abstract((QUESTION,), jnp.int32), abstract((), jnp.int32)
    view = bases.sparse_base(memory, kernel)
    yield "relevance pass", lambda: relevance.attention_mass.lower(params, config, view, ids, count, kernel)

    chunks = layout.chunks(CHUNK_SIZE)
    dense = select.dense_chunks(chunks, np.arange(2, chunks, chunks // TOP_K)[:TOP_K])
    mixture = bases.mixed_base(memory, CHUNK_SIZE, dense, kernel)
    key = placed(jax.eval_shape(lambda: jax.random.key(0)))
    yield "question and answer", lambda: decode.generate.lower(
        params, config, mixture, ids, count, decode.Sampling(), key, max_new=ANSWER, kernel=kernel
    )

    side, per_group = config.vision.image_size, config.frames_per_group
    frames = abstract((sizes.vision_groups * per_group, side, side, 3), jnp.uint8)
    encode = jax.jit(partial(encode_frames, config=config, groups_at_once=sizes.vision_groups, kernel=kernel))
    yield f"vision half, {frames.shape[0]} frames", lambda: encode.lower(params, frames=frames)


def main(name: str) -> None:
    """Compile every program and print what was found."""
    device, limit = topology(name).devices[0], MEMORY_GB[name]
    whole = CONFIG.language.layers
    with machine(name) as abstract:
        half = dict(programs(abstract, device, whole // 2))
        for program, lower in programs(abstract, device, whole):
            start = time.monotonic()
            found = {"machine": name, "program": program, "layers": whole, "memory_gb": limit}
            try:
                found |= planned(lower(), limit)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                # It does not fit. That half of it compiles shows that memory is all that is lacking.
                found |= planned(half[program](), limit)
                found |= {"refused": str(error).splitlines()[0], "layers": whole // 2, "fits": False}
            print(json.dumps(found | {"seconds": round(time.monotonic() - start, 1)}), flush=True)


def planned(program: Any, limit: float) -> dict:
    """Compile; the memory that XLA plans, GB. `limit`: of the device."""
    plan = program.compile().memory_analysis()
    arguments, temporary = plan.argument_size_in_bytes, plan.temp_size_in_bytes
    peak = arguments + temporary + plan.output_size_in_bytes - plan.alias_size_in_bytes
    gb = lambda count: round(count / 1e9, 2)
    found = {"arguments_gb": gb(arguments), "temporary_gb": gb(temporary), "peak_gb": gb(peak)}
    return found | {"fits": peak <= limit * 1e9}


if __name__ == "__main__":
    main(*sys.argv[1:])
