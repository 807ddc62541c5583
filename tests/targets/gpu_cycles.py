"""Count the cycles of the GPU kernels' step over one key tile, without and with a mask, from their machine code.

    python tests/targets/gpu_cycles.py h100
    python tests/targets/gpu_cycles.py a100 128x32x3x4 16x64x3x4

The kernel that is written for the machine, with every tile of devices.json or those given as rows × keys × stages × warps, is
compiled for caches in bfloat16 and, if it reads them, in int8; one JSON line each. Nothing is measured.

`clear`, `masked`: the innermost loop of a step, with `issued`, the cycles in which one warp alone issues its instructions in
order (stalls, barriers, busy pipes; products of a warpgroup are taken as done), and the cycles for which it keeps each pipe
(see `sass`). `cycles`: of a step on a multiprocessor, at least: Triton's warps that are resident together share the pipes, and
none is faster than alone; of Hopper's consumers one multiplies while the other issues the rest. `tensor`: the share
of `cycles` in which the tensor cores work. `spills`: loads and stores of registers in the loops of steps.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MOSAIC = tempfile.mkdtemp(prefix="vxl2-mosaic-")
atexit.register(shutil.rmtree, _MOSAIC, ignore_errors=True)
os.environ |= {"MOSAIC_GPU_DUMP_TO": _MOSAIC, "MOSAIC_GPU_DUMP_PTX": "1"}

import compile_kernels  # first: it and `machines` set what JAX reads when it is imported
import jax.numpy as jnp
import sass
from machines import machine, topology

from pallas_kernels.attention import select, tile_sizes
from pallas_kernels.attention.kernel import BACKENDS
from pallas_kernels.attention.tile_sizes import DeviceTiles, TileSizes

SHARED_PER_MULTIPROCESSOR = {"sm_80": 164, "sm_86": 100, "sm_89": 100, "sm_90a": 228}
"""KiB, of which each program takes one more than it asks for."""
REGISTERS = 65_536


def nvdisasm() -> str:
    """Path of the disassembler, from NVIDIA's wheel or the machine."""
    in_wheels = (str(path) for root in sys.path if root for path in Path(root).glob("nvidia/*/bin/nvdisasm"))
    path = next(in_wheels, None) or shutil.which("nvdisasm")
    if not path:
        raise RuntimeError("nvdisasm is missing: pip install nvidia-cuda-nvdisasm")
    return path


def assembled(kernel: str, program: Any) -> tuple[str, str, int, int]:
    """The listing of a kernel's machine code, the capability, and its registers and shared bytes."""
    for old in glob.glob(f"{compile_kernels._DUMP}/*") + glob.glob(f"{_MOSAIC}/*"):
        os.remove(old)
    program.compile()
    folder = _MOSAIC if kernel == "hopper" else compile_kernels._DUMP
    found = [file for file in glob.glob(f"{folder}/*.ptx") if kernel == "hopper" or "range_attention" in _text(file)]
    capability = re.search(r"\.target (\w+)", _text(found[0]))[1]
    command = [compile_kernels.ptxas(), "-v", "-arch", capability, found[0], "-o", f"{found[0]}.cubin"]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    command = [nvdisasm(), "-c", "-hex", f"{found[0]}.cubin"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    shared = [
        int(size)
        for plan in glob.glob(f"{compile_kernels._DUMP}/*thunk_sequence.txt")
        for size in re.findall(r"shared_memory: (\d+)", _text(plan))
    ]
    return listing, capability, max(map(int, re.findall(r"Used (\d+) registers", log))), max(shared, default=0)


def _text(file: str) -> str:
    return Path(file).read_text()


def steps(listing: str) -> tuple[list[sass.Instruction], list[sass.Instruction]]:
    """The clear and the masked step: the longest loops with products. Triton has a loop for each; on Hopper one loop skips the
    mask, which chooses between two numbers more often than any other part that may be skipped."""
    instructions, labels = sass.parse(listing)
    bodies = [sass.within(instructions, loop) for loop in sass.loops(instructions, labels)]
    bodies = [body for body in bodies if any(i.opcode.startswith(("HMMA", "HGMMA")) for i in body)]
    chosen = {id(body): _choices(body) for body in bodies}
    if any(i.opcode.startswith("HMMA") for i in bodies[0]):
        clear = [body for body in bodies if chosen[id(body)] < max(chosen.values()) / 2]
        return max(clear, key=len), max((body for body in bodies if body not in clear), key=len)
    masked = max(bodies, key=len)
    inside = [part for part in sass.skipped(masked, labels) if part.end <= masked[-1].address]
    mask = max(inside, key=lambda part: _choices(sass.within(masked, part)))
    return [i for i in masked if not mask.start < i.address < mask.end], masked


def _choices(body: list[sass.Instruction]) -> int:
    return sum(instruction.opcode.partition(".")[0] in ("FSEL", "SEL") for instruction in body)


def resident(tiles: TileSizes, capability: str, registers: int, shared: int) -> int:
    """Programs of Triton that fit a multiprocessor."""
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32 * tiles.warps)
    return max(1, min(by_registers, SHARED_PER_MULTIPROCESSOR[capability] * 1024 // (shared + 1024)))


def count(kernel: str, tiles: TileSizes, program: Any) -> dict:
    """What the module's docstring says of one compiled kernel."""
    listing, capability, registers, shared = assembled(kernel, program)
    found: dict[str, Any] = {}
    bodies = dict(zip(("clear", "masked"), steps(listing), strict=True))
    for name, body in bodies.items():
        pipes = sass.work(body, capability)
        found[name] = {"issued": sass.issued(body, capability)} | {
            pipe: round(cycles) for pipe, cycles in pipes.items()
        }
    clear = found["clear"]
    if kernel == "hopper":
        consumers = tiles.rows // 64
        cycles = max(consumers * clear["tensor"], clear["tensor"] + clear["issued"])
        busy = consumers * clear["tensor"]
    else:
        warps = resident(tiles, capability, registers, shared) * tiles.warps // 4
        cycles = max(clear["issued"], *(warps * cycles for pipe, cycles in clear.items() if pipe != "issued"))
        busy = warps * clear["tensor"]
        found["warps"] = warps
    spilled = sum(map(sass.spills, bodies.values()))
    return {"cycles": cycles, "tensor": round(busy / cycles, 3), "spills": spilled} | found


def counted(name: str, given: list[str]) -> Iterator[dict]:
    """A line for every tile and dtype of the cache."""
    device = topology(name).devices[0]
    kernel = select._candidates(device)[0]
    found: DeviceTiles = tile_sizes.lookup(kernel, device.device_kind)
    tiles = [TileSizes(*map(int, tile.split("x"))) for tile in given] or found.row_tiles
    caches = [jnp.bfloat16, jnp.int8] if BACKENDS[kernel].READS_INT8 else [jnp.bfloat16]
    sizes = compile_kernels.KV_HEADS, compile_kernels.WIDTH, compile_kernels.LAYERS
    lengths = compile_kernels.VISUAL, compile_kernels.GLOBAL
    with machine(name) as abstract:
        for entry in tiles:
            for cache in map(jnp.dtype, caches):
                program = compile_kernels.lowered(
                    kernel, abstract, entry, *sizes, lengths, 512, 512, jnp.bfloat16, cache
                )
                yield {
                    "machine": name,
                    "kernel": kernel,
                    "problem": f"step, {cache.name}",
                    "tiles": "x".join(map(str, (entry.rows, entry.keys, entry.stages, entry.warps))),
                    "cache": cache.name,
                } | count(kernel, entry, program)


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    for line in counted(name, given):
        print(json.dumps(line), flush=True)
