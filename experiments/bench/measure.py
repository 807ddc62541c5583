"""Timing of device work: compiled and warm, the median of several, everything taken twice.

Work is repeated inside one compiled loop, so that launching it from the host does not count. Compilers take out of a
loop what does not change in it, and drop what no one reads: so each call's arguments are touched by the result before
it, which changes nothing, but the compiler cannot know. Inputs that could stay in a cache are taken in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

CACHE = 256 * 2**20
"""Bytes that no device's cache holds."""
_TURN_S = 0.03  # how long one sample should at least take, if the work ran at the ceilings
_PATIENCE_S = 4.0  # how long the samples of one figure may take in all


class Timing(NamedTuple):
    """Seconds of the same work, measured twice."""

    first: float
    second: float

    @property
    def seconds(self) -> float:
        return (self.first + self.second) / 2

    @property
    def spread(self) -> float:
        """By how much the two differ: a smaller difference between versions is noise."""
        return abs(self.first - self.second) / self.seconds

    @classmethod
    def total(cls, parts: Sequence[Timing]) -> Timing:
        return cls(sum(part.first for part in parts), sum(part.second for part in parts))

    def over(self, count: int) -> Timing:
        return Timing(self.first / count, self.second / count)


def turns(floor_s: float, accelerator: bool, most: int = 200) -> int:
    """How often to repeat work that takes at least `floor_s`; once where the clock says nothing."""
    return max(1, min(most, int(_TURN_S / max(floor_s, 1e-9)))) if accelerator else 1


def touched(tree: Any, by: Any) -> Any:
    """The arrays of `tree` as they are, written again in one place, in a way that depends on every array of `by`."""
    odd = jnp.stack([leaf[(0,) * leaf.ndim] == 77 for leaf in jax.tree.leaves(by) if leaf.size]).all()

    def touch(array: jax.Array) -> jax.Array:
        array = jnp.asarray(array)
        if not array.size:
            return array
        place = (0,) * array.ndim
        return array.at[place].set(jnp.where(odd, 0, array[place]).astype(array.dtype))

    return jax.tree.map(touch, tree)


def repeated(call: Callable[..., Any], count: int) -> Callable[[Sequence[tuple]], Any]:
    """A compiled function of sets of arguments: `count` turns through all of them, one call after the other.

    Calls are call(number of the turn, *arguments) → arrays; the first argument, a pytree, is what is touched, and
    everything that is to be done anew in each call must depend on it or on the number. Returns the last call's result.
    """

    def run(sets: Sequence[tuple]) -> Any:
        shapes = jax.eval_shape(call, jnp.int32(0), *sets[0])
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def turn(number: jax.Array, carry: tuple) -> tuple:
            (*firsts,), result = carry
            for place, (first, arguments) in enumerate(zip(firsts, sets, strict=True)):
                firsts[place] = touched(first, result)
                result = call(number, firsts[place], *arguments[1:])
            return firsts, result

        firsts = jax.tree.map(jnp.asarray, [arguments[0] for arguments in sets])
        return lax.fori_loop(0, count, turn, (firsts, nothing))[1]

    return jax.jit(run)


def sets_beyond_cache(nbytes: int, most: int = 8) -> int:
    """How many sets of inputs of `nbytes` to take in turns so that none is found in a cache."""
    return max(1, min(most, -(-CACHE // max(nbytes, 1))))


def clock(run: Callable[[Any], Any], operands: Any, *, samples: int, calls: int = 1) -> Timing:
    """Seconds of one of the `calls` that a run makes. The first run compiles and is not counted."""
    jax.block_until_ready(run(operands))
    if samples > 1:
        samples = max(1, min(samples, int(_PATIENCE_S / 2 / max(_once(run, operands), 1e-9))))

    def half():
        return statistics.median(_once(run, operands) for _ in range(samples)) / calls

    return Timing(half(), half())


def _once(run: Callable[[Any], Any], operands: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(operands))
    return time.perf_counter() - start
