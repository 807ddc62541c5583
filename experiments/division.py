"""How evenly attention is divided over a device: the key tiles of a decoding step, and the waves of a stride's timestamps.

    python -m experiments.division
    python -m experiments.division --kernel hopper --device H200 --json

For the real model and videos of several lengths, from the tables that the kernels read; nothing is compiled or measured.
Decoding: one question with 4 chunks dense between the first and the last, and the 80th token of its own. "tiles" are
the key tiles that all programs of a key head read, divided by those that its keys would fill; "busiest" is what the
program with the most tiles takes, times the programs that run at once, divided by the same; "partials" are the results of a
layer that are written before they are merged. Timestamps: the last whole stride, which looks back the farthest. "waves" is how
many of the places of all waves are used; "busy" is the same in key tiles, if each free place takes the next item.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import start
from pallas_kernels import attention, kv_cache
from pallas_kernels.attention.kernel import Kernel, kernel_for
from pallas_kernels.decode import plan_items, segment_tables
from vxl2_jax import planning, prefill
from vxl2_jax.buckets import bucket
from vxl2_jax.cache import plan
from vxl2_jax.hardware import LARGE
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.relevance import selection

DECODING, TIMESTAMPS = (600, 2_048, 10_000), (2_048, 10_000, 20_000)
"""Frames of the two tables."""
CHUNK_SIZE, TOP_K, COMPRESSION, TOKENS = 4, 4, 4, 80


def layout_of(frames: int) -> Layout:
    """The layout of a video at a frame a second."""
    config, tokenizer = planning.model_of("video-xl-2")
    return planning.layout_for(config, tokenizer, frames, fps=1.0)


def tiles_of(schedule: Any, keys: int, align: int) -> np.ndarray:
    """Key tiles of each item: a kernel begins each range at a multiple of `align`."""
    start, end = np.asarray(schedule.item_start), np.asarray(schedule.item_end)
    return np.where(end > start, -(-(end - start // align * align) // keys), 0).sum(axis=0)


def makespan(tiles: Iterable[int], places: int) -> int:
    """Key tiles until the last program ends, if each free place takes the next program."""
    busy = [0] * places
    for count in tiles:
        heapq.heapreplace(busy, busy[0] + count)
    return max(busy)


def decoding(kernel: Kernel, frames: int) -> dict:
    """A decoding step."""
    lm, layout = planning.model_of("video-xl-2")[0].language, layout_of(frames)
    repeats = lm.heads // lm.kv_heads
    chunks = layout.chunks(CHUNK_SIZE)
    dense = selection.dense_chunks(chunks, np.arange(2, chunks, max(chunks // TOP_K, 1))[:TOP_K])
    segments = plan.plan_segments(layout, COMPRESSION, CHUNK_SIZE, dense)
    capacity = bucket(2 * TOP_K + 3)
    table, _ = segment_tables(
        kernel,
        [segments],
        levels=plan.LEVELS,
        capacity=capacity,
        merged_capacity=capacity,
        kv_heads=lm.kv_heads,
        questions=1,
    )
    one = jax.tree.map(lambda a: a[0], table)
    planned = plan_items(kernel, one, np.zeros((1, 1), int), np.full((1, 1), TOKENS), repeats=repeats)
    tiles = tiles_of(planned.schedule, planned.tiles.keys, 8)
    keys = segments.length + TOKENS
    ideal = -(-keys // planned.tiles.keys)
    first = planned.schedule.first_item
    programs = tiles if first is None else [tiles[a:b].sum() for a, b in itertools.pairwise(np.asarray(first))]
    rows = planned.tiles.kept if kernel.persistent else planned.tiles.rows
    longest = makespan(np.repeat(programs, lm.kv_heads), kernel.concurrent_items)
    return {
        "frames": frames,
        "keys": keys,
        "items": int((tiles > 0).sum()),
        "tiles": tiles.sum() / ideal,
        "busiest": longest * kernel.concurrent_items / (ideal * lm.kv_heads),
        "partials_mb": lm.kv_heads * len(tiles) * rows * (lm.head_width + 1) * 4 / 1e6,
    }


def timestamps(kernel: Kernel, frames: int) -> dict:
    """The timestamps of the last whole stride of pre-filling."""
    lm, layout = planning.model_of("video-xl-2")[0].language, layout_of(frames)
    room = prefill.shape_for(layout, LARGE.stride, dtype=jnp.bfloat16)
    whole = layout.groups // LARGE.stride
    stride = prefill.plan_strides(layout, PrefillRule(), np.zeros(layout.global_length, np.int32), room)[whole - 1]
    streams = [
        jax.eval_shape(lambda slots=slots: kv_cache.zeros(1, lm.kv_heads, slots, lm.head_width, jnp.bfloat16))
        for slots in (room.visual, room.global_)
    ]
    own = slice(-len(stride.ids), None)
    planned = attention.plan_attention(
        kernel, stride.k_start[:, own], stride.k_end[:, own], heads=lm.heads, streams=streams
    )
    tiles = np.repeat(tiles_of(planned.schedule, planned.tiles.keys, 8), lm.kv_heads)
    places, programs = kernel.concurrent_items, len(tiles)
    return {
        "frames": frames,
        "rows": len(stride.ids) * lm.heads // lm.kv_heads,
        "pieces": planned.pieces,
        "programs": programs,
        "waves": programs / (-(-programs // places) * places),
        "busy": tiles.sum() / (makespan(tiles, places) * places),
    }


def table(rows: list[dict]) -> str:
    """Markdown."""
    cells = [list(rows[0]), ["--:"] * len(rows[0])]
    cells += [[f"{value:.3f}" if isinstance(value, float) else f"{value:,}" for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("kernel", "hopper", "Kernel.")
    flags.DEFINE_string("device", "H100", "Device kind, as devices.json matches it.")
    flags.DEFINE_boolean("json", False, "Print one JSON document alone on standard output.")


def main(_) -> None:
    kernel = kernel_for(flags.FLAGS.kernel, flags.FLAGS.device)
    found = {
        "decoding": [decoding(kernel, frames) for frames in DECODING],
        "timestamps": [timestamps(kernel, frames) for frames in TIMESTAMPS],
    }
    print(json.dumps(found, indent=1) if flags.FLAGS.json else "\n\n".join(map(table, found.values())))


if __name__ == "__main__":
    start.run(main, define_flags)
