"""How the memory of watching grows with the video: peak resident memory of one process per length.

    python experiments/measure_memory.py --frames 600,1200,2400

Each length runs in a process of its own (a peak never falls), on noise frames made as they are read.
Growth should be that of the cache, linear in the frames: no activation depends on the length.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

from absl import app, flags

_FRAMES = flags.DEFINE_list("frames", ["600", "1200", "2400"], "Lengths in frames.")
_MODEL = flags.DEFINE_string("model", "nano", "The model that watches.")
_ONE = flags.DEFINE_integer("one", None, "Measure this one length in this process and print it (used internally).")
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON list alone on standard output.")


def measure(frames: int) -> dict:
    """Watch `frames` noise frames; peak resident bytes before and after, cache bytes, seconds."""
    import jax
    import numpy as np

    import vxl2_jax as vxl2

    model = vxl2.load(_MODEL.value)
    side = model.config.vision.image_size
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    video = np.broadcast_to(noise, (frames, side, side, 3))  # one frame in memory, shown again and again
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    memory = model.watch((video, np.arange(frames)))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves((memory.dense, memory.sparse)))
    return {
        "frames": frames, "tokens": memory.layout.length, "peak_bytes": peak, "above_loaded_bytes": peak - before,
        "cache_bytes": cache, "seconds_with_compilation": round(seconds, 2),
    }


def main(_) -> None:
    if _ONE.value:
        print(json.dumps(measure(_ONE.value)))
        return
    rows = []
    for frames in _FRAMES.value:
        command = [sys.executable, __file__, f"--one={int(frames)}", f"--model={_MODEL.value}"]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        if not _JSON.value:
            row, mib = rows[-1], 2**20
            print(
                f"{row['frames']:6d} frames {row['tokens']:7d} tokens  peak {row['peak_bytes'] / mib:7.1f} MiB "
                f"({row['above_loaded_bytes'] / mib:6.1f} above the loaded model)  cache {row['cache_bytes'] / mib:6.1f} MiB  "
                f"{row['seconds_with_compilation']:.1f} s"
            )
    if _JSON.value:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    app.run(main)
