"""Checkpoints of each layout, loaded on one device and sharded over four simulated ones, in a separate process.

    python tests/checkpoints/on_devices.py DIR (quick or all)

Prints one JSON line: for each case whether parameters are equal bit for bit and where they should be, and the most bytes that
any new array had on one device while loading.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(Path(__file__).parents[1]))

import toys

from vxl2_jax import tensor_parallel
from vxl2_jax.checkpoints import assemble, fetch, huggingface, native, quantised_file
from vxl2_jax.models import quantised

CONFIG = replace(
    toys.CONFIG,
    language=replace(toys.CONFIG.language, layers=2, heads=8, kv_heads=4, head_width=8, mlp=1024, vocabulary=1200),
)
WAYS = 4
LARGEST = 4 * 2 * 32 * 1024
"""Bytes of the largest stack of kernels, which is sharded."""


def largest_on_a_device(known: set[int]) -> int:
    """The most bytes that an array has on one device, except the arrays with these ids."""
    arrays = [array for array in jax.live_arrays() if id(array) not in known]
    shapes = [(array.sharding.shard_shape(array.shape), array.dtype.itemsize) for array in arrays]
    return max((math.prod(shape) * itemsize for shape, itemsize in shapes), default=0)


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Looks at the arrays on the devices whenever something is placed or written."""
    known, found = {id(array) for array in jax.live_arrays()}, {"most": 0}
    kept = jax.live_arrays()  # so that no id is given to another array
    originals = jax.device_put, assemble._write

    def looking(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            found["most"] = max(found["most"], largest_on_a_device(known))
            return result

        return call

    jax.device_put, assemble._write = map(looking, originals)
    try:
        yield found
    finally:
        jax.device_put, assemble._write = originals
        del kept


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def case(mesh: Any, folder: Path, weights: str | None) -> dict[str, Any]:
    one = fetch.read(folder, "bfloat16", None, weights)[1]
    with watched() as found:
        progress: Any = lambda done, total: jax.device_put(0)  # noqa: E731
        split = fetch.read(folder, "bfloat16", progress, weights, partial(tensor_parallel.placed, mesh))[1]
    specs = jax.tree.structure(split).flatten_up_to(tensor_parallel.param_specs(split, WAYS))
    leaves = jax.tree.leaves(split)
    return {
        "equal": jax.tree.structure(one) == jax.tree.structure(split) and bits(one) == bits(split),
        "placed": all(
            leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim)
            for leaf, spec in zip(leaves, specs, strict=True)
        ),
        "most": found["most"],
        "weights": quantised.setting_of(split),
    }


def odd_columns(mesh: Any, folder: Path) -> bool:
    """4-bit numbers of which a byte holds some of two shards."""
    numbers = jnp.asarray(np.random.default_rng(0).integers(-7, 8, (3, 5, 20)), jnp.int4)
    folder.mkdir()
    quantised_file.write(folder, {"four": numbers})
    sharding = NamedSharding(mesh, P(None, None, "model"))
    (found,) = quantised_file.read(folder, {"four": jax.ShapeDtypeStruct(numbers.shape, jnp.int4, sharding=sharding)})
    return np.array_equal(found, numbers) and found.addressable_shards[0].data.shape == (3, 5, 5)


def main(directory: str, extent: str) -> None:
    folder = Path(directory)
    mesh = tensor_parallel.make_mesh(CONFIG, tensor_parallel.MeshShape(WAYS))
    params = toys.model(CONFIG).params
    original = folder / "original"
    original.mkdir()
    huggingface.save(original, CONFIG, params, "float32")
    found = {"small": case(mesh, original, "wide")}  # made on the host
    # From here on, what is sharded is read in several parts.
    assemble.SMALL, assemble.PART, native._CHUNK_BYTES = 8192, 8192, 16384
    native.save(folder / "wide", CONFIG, params, "{}")
    for setting in quantised.SETTINGS if extent == "all" else (quantised.WIDE, quantised.INT8):
        found[f"original {setting}"] = case(mesh, original, setting)
        if setting in (quantised.INT8, quantised.INT4) and extent == "all":
            native.save(folder / setting, CONFIG, fetch.read(original, "float32", None, setting)[1], "{}")
            found[f"file {setting}"] = case(mesh, folder / setting, None)
    found["native wide"] = case(mesh, folder / "wide", None)
    if extent == "all":
        native._CACHE_BYTES = 0  # chunks are then taken for too large to be read twice
        found["native int8"] = case(mesh, folder / "wide", "int8")
    print(json.dumps({"cases": found, "odd": odd_columns(mesh, folder / "odd"), "largest": LARGEST}))


if __name__ == "__main__":
    main(*sys.argv[1:])
