"""Compile every attention kernel, with the tiles of devices.json, for a machine that is not here; one JSON line each.

    python tests/targets/compile_kernels.py h100

Problems of real size: 28 layers (2 on TPUs, whose compiler counts the whole cache against the memory of the chip), 4
key heads of width 128, bf16, a visual stream of 400,000 tokens, a global one of 25,000; in decoding also the sparse
level and the tail, with items that share query tiles; where the kernel is persistent, also a step of one question, with
132 programs and results of 8 rows. Kernels that read caches in int8 compile these with such caches,
too: decoding with the smallest and the largest tile. The vision tower: 64 frames of 16 heads and 729 patches.

Lines for GPUs have the program's registers, spills and shared memory (on Hopper that of the tiles; barriers add about
2 KB, and too much is a compiler error). Lines for TPUs have the smallest VMEM limit (MiB) under which it compiles.
"""

from __future__ import annotations

import atexit
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

_DUMP = tempfile.mkdtemp(prefix="vxl2-ptx-")
atexit.register(shutil.rmtree, _DUMP, ignore_errors=True)
os.environ["XLA_FLAGS"] = f"--xla_dump_to={_DUMP} --xla_dump_emitter_re=ptx"
os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"

import jax
import jax.numpy as jnp
from machines import GPUS, machine, topology

from pallas_kernels import kv_cache
from pallas_kernels.attention import select, tile_sizes
from pallas_kernels.attention.kernel import BACKENDS
from pallas_kernels.attention.tile_schedule import TileSchedule

LAYERS, KV_HEADS, WIDTH = 28, 4, 128
VISUAL, GLOBAL, SPARSE, TAIL = 400_000, 25_008, 125_008, 144
VMEM_MIB = (4, 6, 8, 12, 16)
"""Limits to try on a TPU; 16 is the default of a kernel."""


def problems(kernel: str, device: tile_sizes.DeviceTiles):
    """(name, tiles, heads, width, layers, stream lengths, items, query tiles, dtypes of output and cache)."""
    largest, layers, bf16 = device.row_tiles[-1], 2 if kernel == "tpu" else LAYERS, jnp.bfloat16
    streams, all_streams = (VISUAL, GLOBAL), (VISUAL, GLOBAL, SPARSE, TAIL)
    yield "pre-fill", largest, KV_HEADS, WIDTH, layers, streams, 512, 512, bf16, bf16
    yield "pre-fill, split", largest, KV_HEADS, WIDTH, layers, streams, 120, 24, jnp.float32, bf16
    for entry in device.row_tiles:
        yield "decode", entry, KV_HEADS, WIDTH, layers, all_streams, 300, 20, jnp.float32, bf16
    if device.persistent:
        step = replace(device.row_tiles[0], kept=8)
        yield "step", step, KV_HEADS, WIDTH, layers, all_streams, 50, 12, jnp.float32, bf16
    if BACKENDS[kernel].READS_INT8:
        yield "pre-fill, int8", largest, KV_HEADS, WIDTH, layers, streams, 512, 512, bf16, jnp.int8
        for entry in (device.row_tiles[0], device.row_tiles[-1]):
            yield "decode, int8", entry, KV_HEADS, WIDTH, layers, all_streams, 300, 20, jnp.float32, jnp.int8
    if kernel == "tpu":
        return  # `frames`
    rows = -(-729 // device.full.rows)
    width = max(device.full_width, 72)
    yield "vision", device.full, 64 * 16, width, 1, (736,), rows, rows, bf16, bf16


def lowered(
    kernel: str,
    abstract: Callable,
    entry: tile_sizes.TileSizes,
    heads,
    width,
    layers,
    lengths,
    items,
    q_tiles,
    out_dtype,
    cache_dtype,
) -> Any:
    """`attend_tiles` of one problem, lowered."""

    def ints(*shape):
        return abstract(shape, jnp.int32)

    streams, bf16 = len(lengths), jnp.bfloat16
    schedule = TileSchedule(ints(items), *[ints(streams, items)] * 4, *[ints(streams, q_tiles, entry.rows)] * 2)
    if entry.kept:
        schedule = schedule._replace(first_item=ints(132 // heads + 1))

    def cache(length):
        slots = kv_cache.aligned(length, cache_dtype)
        empty = jax.eval_shape(lambda: kv_cache.zeros(layers, heads, slots, width, cache_dtype))
        return jax.tree.map(lambda part: abstract(part.shape, part.dtype), empty)

    caches = tuple(map(cache, lengths))

    def run(q, caches, layer, schedule):
        return BACKENDS[kernel].attend_tiles(
            q, caches, layer, schedule, scale=width**-0.5, tiles=entry, out_dtype=out_dtype
        )

    return jax.jit(run).lower(abstract((heads, q_tiles, entry.rows, width), bf16), caches, ints(), schedule)


def frames(abstract: Callable, rows: int) -> Any:
    """The TPU kernel of the vision tower for 64 frames of 16 heads and 729 patches, lowered."""
    columns = [abstract((64, 729, 16 * 72), jnp.bfloat16)] * 3
    attend = BACKENDS["tpu"].attend_frames
    return jax.jit(lambda q, k, v: attend(q, k, v, heads=16, rows=rows, scale=72**-0.5)).lower(*columns)


def on_tpu(program: Any) -> dict:
    """The smallest VMEM limit under which the program compiles."""
    for limit in VMEM_MIB:
        try:
            program.compile(compiler_options={"xla_tpu_scoped_vmem_limit_kib": str(limit * 1024)})
            return {"vmem_mib": limit}
        except jax.errors.JaxRuntimeError as error:
            message = str(error)
    raise RuntimeError(message.splitlines()[0])


def on_gpu(kernel: str, program: Any, tile_bytes: int) -> dict:
    """Registers, spilled bytes and shared memory, from ptxas. tile_bytes: of the tiles of a Hopper program."""
    for old in glob.glob(f"{_DUMP}/*"):
        os.remove(old)
    if kernel == "hopper":
        log, shared = _captured(program.compile), tile_bytes
    else:
        program.compile()
        (file,) = [name for name in glob.glob(f"{_DUMP}/*.ptx") if "range_attention" in Path(name).read_text()]
        arch = re.search(r"\.target (\w+)", Path(file).read_text())[1]
        command = [ptxas(), "-v", "-arch", arch, file, "-o", f"{file}.cubin"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        (plan,) = glob.glob(f"{_DUMP}/*thunk_sequence.txt")
        shared = max(map(int, re.findall(r"shared_memory: (\d+)", Path(plan).read_text())), default=0)
    used = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill", log)]
    return {"registers": max(used), "spilled_bytes": sum(spilled), "shared_bytes": shared}


def ptxas() -> str:
    """Path of the assembler, from NVIDIA's wheel or the machine."""
    in_wheels = (str(path) for root in sys.path if root for path in Path(root).glob("nvidia/*/bin/ptxas"))
    path = next(in_wheels, None) or shutil.which("ptxas")
    if not path:
        raise RuntimeError("ptxas is missing: pip install nvidia-cuda-nvcc")
    return path


def _captured(call: Callable[[], Any]) -> str:
    """What a call writes to standard output and error, native code included."""
    with tempfile.TemporaryFile("w+") as file:
        saved = [os.dup(1), os.dup(2)]
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        try:
            call()
        finally:
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)
        file.seek(0)
        return file.read()


def main(name: str) -> None:
    """Compile every kernel written for the machine."""
    device = topology(name).devices[0]
    with machine(name) as abstract:
        for kernel in select._candidates(device):
            for problem, entry, *sizes in problems(kernel, tile_sizes.lookup(kernel, device.device_kind)):
                start = time.monotonic()
                program = lowered(kernel, abstract, entry, *sizes)
                tile_bytes = (entry.rows + 2 * entry.stages * entry.keys) * sizes[1] * 2
                found = on_gpu(kernel, program, tile_bytes) if name in GPUS else on_tpu(program)
                tile = "x".join(map(str, (entry.rows, entry.keys, entry.stages, entry.warps)))
                line = {"machine": name, "kernel": kernel, "problem": problem, "tiles": tile}
                print(json.dumps(line | found | {"seconds": round(time.monotonic() - start, 1)}), flush=True)
            if kernel == "tpu":
                rows = tile_sizes.lookup(kernel, device.device_kind).full.rows
                line = {"machine": name, "kernel": kernel, "problem": "vision", "tiles": str(rows)}
                frames(abstract, rows).compile()  # it asks for the VMEM that it needs
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
