"""Measuring: timing of compiled and warm device work, device ceilings, and errors against a float32 reference.

Work is repeated inside one compiled loop, so that launches from the host are not counted. Compilers hoist what does not
change out of a loop and drop results that nobody reads. So the arguments of each call depend on the result of the call
before it, in a way that never changes their values. Several sets of inputs are used in turn, so that none stays cached.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.attention import KVCache

_CACHE_BYTES = 256 * 2**20  # more than any device's cache
_SAMPLE_S = 0.03  # the least duration of a sample, if the work ran at the ceilings


@dataclass(frozen=True)
class Timing:
    """Seconds of the same work in several rounds."""

    rounds: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Relative difference of the slowest and the fastest round: smaller differences between versions are noise."""
        return (max(self.rounds) - min(self.rounds)) / self.seconds

    @classmethod
    def total(cls, parts: Sequence[Timing]) -> Timing:
        return cls(tuple(map(sum, zip(*(part.rounds for part in parts), strict=True))))

    def times(self, factor: float) -> Timing:
        return Timing(tuple(factor * s for s in self.rounds))


@dataclass(frozen=True)
class Ceilings:
    """FLOP/s of a large matrix product, bytes/s (read and written) of a large copy, and what these were."""

    flops: float
    bytes: float
    product: str
    copy: str

    def floor_s(self, flops: float, nbytes: float) -> float:
        """The least seconds for so many operations and bytes, whichever take longer."""
        return max(flops / self.flops, nbytes / self.bytes)

    def bound(self, flops: float, nbytes: float) -> str:
        return "arithmetic" if flops / self.flops >= nbytes / self.bytes else "bandwidth"


def measure_ceilings(device: Any, dtype: str, samples: int, seed: int) -> Ceilings:
    """Measure the ceilings of a device with random numbers of `dtype`. On a CPU the problems are small."""
    large = device.platform != "cpu"
    side, nbytes, products, copies = (8192, 2 * 2**30, 20, 200) if large else (512, 32 * 2**20, 1, 1)
    keys = jax.random.split(jax.random.key(seed), 3)
    a, b = (jax.random.normal(key, (side, side), dtype) for key in keys[:2])
    b = b * side**-0.5  # products keep the spread of `a`
    product = clock(repeated(lambda _, a, b: a @ b, products), [(a, b)], samples=samples, calls=products)
    source = jax.random.bits(keys[2], (nbytes // 8,), jnp.uint32)  # half the bytes are read, half written
    copy = clock(repeated(lambda _, x: jnp.invert(x), copies), [(source,)], samples=samples, calls=copies)
    return Ceilings(
        flops=2 * side**3 / product.seconds,
        bytes=nbytes / copy.seconds,
        product=f"{dtype} product of {side} × {side} random numbers",
        copy=f"copy of {nbytes / 2 / 2**20:g} MiB",
    )


def turns(floor_s: float, accelerator: bool) -> int:
    """How often to repeat work that takes at least `floor_s` seconds; once on a CPU, where kernels are interpreted."""
    return max(1, min(200, int(_SAMPLE_S / max(floor_s, 1e-9)))) if accelerator else 1


def sets_beyond_cache(nbytes: int) -> int:
    """How many sets of inputs of `nbytes` bytes (1 to 8) together exceed a device's cache."""
    return max(1, min(8, -(-_CACHE_BYTES // max(nbytes, 1))))


def touched(tree: Any, by: Any) -> Any:
    """`tree` with unchanged values, one element of each array rewritten in a way that depends on every array of `by`."""
    odd = jnp.stack([leaf[(0,) * leaf.ndim] == 77 for leaf in jax.tree.leaves(by) if leaf.size]).all()

    def touch(array: jax.Array) -> jax.Array:
        array = jnp.asarray(array)
        if not array.size:
            return array
        first = (0,) * array.ndim
        return array.at[first].set(jnp.where(odd, 0, array[first]).astype(array.dtype))

    return jax.tree.map(touch, tree)


def repeated(call: Callable[..., Any], count: int) -> Callable[[Sequence[tuple]], Any]:
    """A compiled function of sets of arguments that calls `call` on each set in turn, `count` times.

    Calls are call(turn number, *arguments) → arrays. The first argument, a pytree, is touched before each call: work
    that must not be hoisted depends on it or on the number. Returns the last call's result.
    """

    def run(sets: Sequence[tuple]) -> Any:
        shapes = jax.eval_shape(call, jnp.int32(0), *sets[0])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def turn(number: jax.Array, carry: tuple) -> tuple:
            (*firsts,), result = carry
            for place, (first, arguments) in enumerate(zip(firsts, sets, strict=True)):
                firsts[place] = touched(first, result)
                result = call(number, firsts[place], *arguments[1:])
            return firsts, result

        firsts = jax.tree.map(jnp.asarray, [arguments[0] for arguments in sets])
        return lax.fori_loop(0, count, turn, (firsts, zeros))[1]

    return jax.jit(run)


def clock(run: Callable[[Any], Any], operands: Any, *, samples: int, calls: int = 1, budget_s: float = 4.0) -> Timing:
    """Seconds of one of the `calls` calls of run(operands), in two rounds of the median of `samples` runs each.

    The first run compiles and is not counted. Fewer samples are taken if they would exceed `budget_s` seconds in all.
    """

    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run(operands))
        return time.perf_counter() - start

    once()
    if samples > 1:
        samples = max(1, min(samples, int(budget_s / 2 / max(once(), 1e-9))))
    return Timing(tuple(statistics.median(once() for _ in range(samples)) / calls for _ in range(2)))


TOLERANCE = {"bfloat16": 2e-2, "float16": 5e-3, "float32": 1e-3}
"""Relative errors above these are not rounding (float32 products may use fewer bits on accelerators)."""


@jax.jit
def reference_attention(
    q: jax.Array, streams: Sequence[KVCache], k_start: jax.Array, k_end: jax.Array, layer: jax.Array | int = 0
) -> jax.Array:
    """Attention of a few queries in float32, one key head at a time.

    Shapes: q [n, H, D]; streams of [L, K, S, D]; k_start, k_end int32 [number of streams, n] → float32 [n, H, D].
    """
    count, heads, width = q.shape
    kv_heads = streams[0].k.shape[1]
    rows = jnp.asarray(q, jnp.float32).reshape(count, kv_heads, heads // kv_heads, width) * width**-0.5
    visible = jnp.concatenate(
        [
            (jnp.arange(s.k.shape[2]) >= low[:, None]) & (jnp.arange(s.k.shape[2]) < high[:, None])
            for s, low, high in zip(streams, k_start, k_end, strict=True)
        ],
        axis=1,
    )
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)

    def one_head(head: jax.Array) -> jax.Array:
        k, v = (jnp.concatenate([getattr(s, part)[layer, head] for s in streams]).astype(jnp.float32) for part in "kv")
        logits = jnp.where(visible[:, None], product("nrd,sd->nrs", rows[:, head], k), -jnp.inf)
        return product("nrs,sd->nrd", jax.nn.softmax(logits, axis=-1), v)

    return jnp.moveaxis(lax.map(one_head, jnp.arange(kv_heads)), 0, 1).reshape(count, heads, width)


def relative_error(found: jax.Array, expected: jax.Array) -> float:
    """‖found − expected‖ / ‖expected‖; NaN where anything is NaN."""
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def evenly(length: int, count: int) -> np.ndarray:
    """int32 [≤ count]: evenly spaced indices below `length`, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(np.int32))
