"""Timing of device work: compiled and warm, the median of several, everything taken twice.

Work is repeated inside one compiled loop, so that launching it from the host does not count. Each turn waits
for the one before: its number passes through a barrier with the last result. Inputs that could stay in a
cache are taken in turns.
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

Step = Callable[[jax.Array, Any], Any]
"""(number of the turn, operands) → results."""


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


def repeated(step: Step, count: int) -> Callable[[Any], Any]:
    """A compiled function of the operands that takes `count` turns, one after the other."""

    def run(operands: Any) -> Any:
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(step, jnp.int32(0), operands))

        def turn(number: jax.Array, before: Any) -> Any:
            return step(lax.optimization_barrier((number, before))[0], operands)

        return lax.fori_loop(0, count, turn, nothing)

    return jax.jit(run)


def in_turn(call: Callable[..., Any]) -> Step:
    """A step that calls `call` once for every tuple of arguments among its operands, each after the one before."""

    def step(number: jax.Array, operands: Sequence[tuple]) -> Any:
        before = number
        for arguments in operands:
            arguments, _ = lax.optimization_barrier((arguments, before))
            before = call(*arguments)
        return before

    return step


def sets_beyond_cache(nbytes: int, most: int = 8) -> int:
    """How many sets of inputs of `nbytes` to take in turns so that none is found in a cache."""
    return max(1, min(most, -(-CACHE // max(nbytes, 1))))


def clock(run: Callable[[Any], Any], operands: Any, *, samples: int, calls: int = 1) -> Timing:
    """Seconds of one of the `calls` that a run makes. The first run compiles and is not counted."""
    jax.block_until_ready(run(operands))
    if samples > 1:
        samples = max(1, min(samples, int(_PATIENCE_S / 2 / max(_once(run, operands), 1e-9))))
    half = lambda: statistics.median(_once(run, operands) for _ in range(samples)) / calls
    return Timing(half(), half())


def _once(run: Callable[[Any], Any], operands: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(operands))
    return time.perf_counter() - start
