"""A random checkpoint of the released layout, with its real vocabulary, and the memory that converting and loading it take.

    python tests/checkpoints/large_checkpoint.py write DIR             # 2.1 GB of bfloat16 in shards
    python tests/checkpoints/large_checkpoint.py measure DIR int8      # one JSON document

`measure` quantises DIR while loading it, saves it natively, and loads that again, each in a process of its own. It
reports the peak of anonymous memory above that of an idle process that has imported the same. On a CPU, the arrays of
the device are part of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.flax import save_file

from vxl2_jax.checkpoints import huggingface, key_mapping, native
from vxl2_jax.config import LanguageConfig, ModelConfig, VisionConfig
from vxl2_jax.models import quantised

LARGE = ModelConfig(
    vision=VisionConfig(layers=6),
    language=LanguageConfig(width=1792, layers=6, heads=14, kv_heads=2, mlp=9472),
)
_SHARD_BYTES = 300e6


def write(directory: Path, config: ModelConfig = LARGE) -> None:
    """Write config.json and shards of random bfloat16 tensors; at most a shard is in memory."""
    directory.mkdir()
    shapes = key_mapping.original_shapes(config, huggingface.abstract_params(config))
    rng, names, shard = np.random.default_rng(0), {}, {}

    def flush() -> None:
        name = f"model-{len(set(names.values())) + 1:05}.safetensors"
        save_file(shard, directory / name)
        names.update(dict.fromkeys(shard, name))
        shard.clear()

    for key, shape in shapes.items():
        values = rng.standard_normal(shape, np.float32) * 0.02 + (1.0 if "norm" in key else 0.0)
        shard[key] = jnp.asarray(values, jnp.bfloat16)
        if sum(tensor.nbytes for tensor in shard.values()) > _SHARD_BYTES:
            flush()
    flush()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    lm = config.language
    text = {
        "hidden_size": lm.width,
        "num_hidden_layers": lm.layers,
        "num_attention_heads": lm.heads,
        "num_key_value_heads": lm.kv_heads,
        "intermediate_size": lm.mlp,
        "vocab_size": lm.vocabulary,
        "rope_theta": lm.rope_theta,
    }
    (directory / "config.json").write_text(json.dumps(text))


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["RssAnon"].split()[0])


def peak_of(work: Callable[[], Any]) -> dict[str, float]:
    """The peak of anonymous memory while `work` runs above that before, in bytes, and its seconds."""
    before, peak, done = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        jax.block_until_ready(work())
    finally:
        done.set()
        watcher.join()
    return {"peak_bytes": max(peak, anonymous_bytes()) - before, "seconds": round(time.perf_counter() - start, 1)}


def step(name: str, source: Path, target: Path, weights: str) -> dict[str, float]:
    """One of the steps of `measure`, in this process, which has imported all that the step needs."""
    jnp.zeros(1).block_until_ready()
    kept: list[Any] = []

    def quantise() -> Any:
        config, params = huggingface.load(source, "bfloat16", weights=weights)
        if name == "convert":
            native.save(target, config, params, "{}")
        kept.append(params)
        return params

    def load() -> Any:
        kept.append(native.load(target, "bfloat16")[1])
        return kept[0]

    found = peak_of(load if name == "native" else quantise)
    return found | {"weights_bytes": quantised.bytes_of(kept[0])}


def measure(source: Path, weights: str) -> dict[str, Any]:
    """The steps of loading, converting, and loading what was converted."""
    found: dict[str, Any] = {"weights": weights}
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        for name in ("load", "convert", "native"):
            command = [sys.executable, __file__, name, str(source), weights, str(Path(folder, "native"))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            found[name]["over_weights"] = round(found[name]["peak_bytes"] / found[name]["weights_bytes"], 3)
    return found


def main(command: str, source: str, weights: str = "int8", target: str = "") -> None:
    if command == "write":
        write(Path(source))
    elif command == "measure":
        print(json.dumps(measure(Path(source), weights), indent=1))
    else:
        print(json.dumps(step(command, Path(source), Path(target), weights)))


if __name__ == "__main__":
    main(*sys.argv[1:])
