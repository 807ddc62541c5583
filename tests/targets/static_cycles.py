"""Count the cycles of the TPU kernel's step over one key tile that needs no mask, from the compiler's final schedule.

    python tests/targets/static_cycles.py v5e
    python tests/targets/static_cycles.py v5e 512x1024x2 512x512x2

Every tile of devices.json, or those given as rows × keys × stages, is compiled for caches in bfloat16 and in int8; one JSON
line each, and without tiles given one for the vision tower's kernel and two for the gradient. A TPU core issues one bundle of instructions per cycle, so the bundles of the longest stretch without a branch,
which is this step, are its cycles as far as no instruction waits for memory. Nothing is measured. `busy`: the share of each
slot's places that is used, by the compiler's count, where loading the units with keys or values counts, too. `of_peak`: the time
that the step's products would take at the peak of the data sheet, over its cycles; what comes between steps, about 120 cycles of
fetching and waiting, is in neither. `spills`: stores of registers that did not suffice; logits wait in memory between
product and softmax in any case.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pallas_kernels.attention import tile_sizes, tpu_gradient
from pallas_kernels.attention.tile_sizes import DeviceTiles, TileSizes

TARGET, KEPT = re.compile(r"\s*0x([0-9a-f]+)\s*(LB|PF|PB)?\s*:"), ("MXU", "VALU", "VLOAD", "VSTORE")
CACHES = ("bfloat16", "int8")
PEAK = {"v4": 2**17, "v5e": 2**17, "v5p": 2**17, "v6e": 2**19}
"""Operations of a core per cycle in bfloat16: 275 TFLOP/s on two cores at 1.05 GHz, 197 at 1.5, 459 on two at 1.75, 918 at 1.75."""
WIDTH = 128
PATCHES, HEAD_WIDTH, HEADS_OF_A_STEP = 729, 72, 2
TOKENS, REPEATS = 16_384, 7


def compile_tile(machine_name: str, rows: int, keys: int, stages: int, cache_dtype: str) -> None:
    """Compile the pre-fill problem of `compile_kernels` with one tile; its flags say where the compiler writes the schedule."""
    import compile_kernels  # first: it and `machines` set what JAX reads when it is imported
    import jax.numpy as jnp
    from machines import machine

    heads, width, lengths = (
        compile_kernels.KV_HEADS,
        compile_kernels.WIDTH,
        (compile_kernels.VISUAL, compile_kernels.GLOBAL),
    )
    with machine(machine_name) as abstract:
        program = compile_kernels.lowered(
            "tpu", abstract, TileSizes(rows, keys, stages), heads, width, 2, lengths, 512, 512, jnp.bfloat16,
            jnp.dtype(cache_dtype),
        )  # fmt: skip
        program.compile(compiler_options={"xla_tpu_scoped_vmem_limit_kib": str(32 * 1024)})


def compile_frames(machine_name: str, rows: int) -> None:
    """The same of the kernel for the vision tower."""
    import compile_kernels
    from machines import machine

    with machine(machine_name) as abstract:
        compile_kernels.frames(abstract, rows).compile()


def compile_gradients(machine_name: str) -> None:
    """The same of the gradient's two kernels, for a video of 16,384 tokens."""
    import jax
    import jax.numpy as jnp
    from compile_kernels import KV_HEADS
    from machines import machine

    rows, tiles = tpu_gradient.ROWS, TOKENS * REPEATS // tpu_gradient.ROWS
    with machine(machine_name) as abstract:
        q = abstract((KV_HEADS, tiles, rows, WIDTH), jnp.bfloat16)
        of_rows = abstract((KV_HEADS, tiles, rows), jnp.float32)
        keys = abstract((KV_HEADS, TOKENS, WIDTH), jnp.bfloat16)
        bounds = abstract((tiles, rows), jnp.int32)
        gradients = jax.jit(lambda *arrays: tpu_gradient.attend_gradients(*arrays, scale=1.0))
        gradients.lower(q, q, of_rows, of_rows, keys, keys, bounds, bounds).compile()


def count(folder: Path, name: str = "attend_tiles.1-") -> dict:
    """The bundles of the longest stretch without a branch, and how its slots are used, from a folder of dumps."""
    (bundles,) = (p for p in folder.glob(f"*{name}*final_bundles.txt") if "schedule" not in p.name)
    branches = [
        int(found[1], 16)
        for line in bundles.read_text().splitlines()
        if (found := TARGET.match(line)) and (found[2] or "sbr.rel" in line)
    ]
    length, begin, end = max((b - a, a, b) for a, b in zip(branches, branches[1:], strict=False))
    (utilization,) = folder.glob(f"*{name}*final_hlo-static-per-bundle-utilization.txt")
    header, table = utilization.read_text().split("== UTILIZATION:")
    lines = header.splitlines()
    names = next(line for line in lines if "MXU" in line)
    places = list(map(int, lines[lines.index(names) + 1].split()))
    used = [list(map(int, line.split())) for line in table.splitlines() if line.strip()[:1].isdigit()]
    sums = {
        name.strip(): (sum(column), place)
        for name, column, place in zip(names.split(","), zip(*used[begin:end], strict=True), places, strict=True)
    }
    busy = {name: round(sums[name][0] / (sums[name][1] * length), 3) for name in KEPT}
    return {"cycles": length, "busy": busy, "spills": sums["VSTORE:SPILL"][0]}


def dumped(folder: str, *arguments: str) -> Path:
    """The folder with the schedules of one compilation, in a process of its own."""
    dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LIBTPU_INIT_ARGS": dump})
    if done.returncode:
        sys.exit(f"{arguments}: {done.stderr[-2000:]}")
    return Path(folder)


def counted(machine_name: str, tiles: list[str]) -> Iterator[dict]:
    """A line for every tile and dtype of the cache."""
    for tile in tiles:
        for cache in CACHES:
            with tempfile.TemporaryDirectory() as folder:
                found = count(dumped(folder, "compile", machine_name, *tile.split("x"), cache))
                rows, keys, _ = map(int, tile.split("x"))
                of_peak = 4 * rows * keys * WIDTH / PEAK[machine_name] / found["cycles"]
                yield {
                    "machine": machine_name,
                    "kernel": "tpu",
                    "problem": f"step, {cache}",
                    "tiles": tile,
                    "cache": cache,
                    **found,
                    "of_peak": round(of_peak, 3),
                }


def counted_frames(machine_name: str) -> dict:
    """The line of the vision tower's kernel: cycles of one head of one frame, from a step over two heads and a tile of rows."""
    rows = device_tiles(machine_name).full.rows
    with tempfile.TemporaryDirectory() as folder:
        found = count(dumped(folder, "frames", machine_name, str(rows)), "attend_frames.1-")
    cycles = found["cycles"] * -(-PATCHES // rows) // HEADS_OF_A_STEP
    useful = 4 * PATCHES**2 * HEAD_WIDTH / PEAK[machine_name] / cycles
    line = {"machine": machine_name, "kernel": "tpu", "problem": "vision, a head of a frame", "tiles": str(rows)}
    return line | found | {"cycles": cycles, "of_peak": round(useful, 3)}


def counted_gradients(machine_name: str) -> Iterator[dict]:
    """The lines of the gradient's kernels: cycles of a pair of tiles."""
    rows, keys = tpu_gradient.ROWS, tpu_gradient.KEYS
    with tempfile.TemporaryDirectory() as folder:
        dumps = dumped(folder, "gradients", machine_name)
        for name, products in (("attend_gradients_kv", 4), ("attend_gradients_q", 3)):
            found = count(dumps, f"{name}.1-")
            of_peak = 2 * products * rows * keys * WIDTH / PEAK[machine_name] / found["cycles"]
            line = {
                "machine": machine_name,
                "kernel": "tpu",
                "problem": name.replace("attend_", ""),
                "tiles": f"{rows}x{keys}",
            }
            yield line | found | {"of_peak": round(of_peak, 3)}


def tiles_of(machine_name: str) -> list[str]:
    """The tiles that devices.json has for a machine."""
    return ["x".join(map(str, (t.rows, t.keys, t.stages))) for t in device_tiles(machine_name).row_tiles]


def device_tiles(machine_name: str) -> DeviceTiles:
    """The row of devices.json for a machine."""
    from machines import topology

    return tile_sizes.lookup("tpu", topology(machine_name).devices[0].device_kind)


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        name, rows, keys, stages, cache = sys.argv[2:]
        compile_tile(name, int(rows), int(keys), int(stages), cache)
    elif sys.argv[1] == "frames":
        compile_frames(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1] == "gradients":
        compile_gradients(sys.argv[2])
    else:
        name, *given = sys.argv[1:]
        for line in counted(name, given or tiles_of(name)):
            print(json.dumps(line), flush=True)
        if not given:
            for line in (counted_frames(name), *counted_gradients(name)):
                print(json.dumps(line), flush=True)
