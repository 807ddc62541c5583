"""What the machine can do at best, measured in the same run: a large matrix product and a large copy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import machine, measure


@dataclass(frozen=True)
class Ceilings:
    """Operations and bytes (read and written) per second, and what they were measured with."""

    flops: float
    bytes: float
    product: str
    copy: str

    def floor_s(self, flops: float, nbytes: float) -> float:
        """The least time for that much arithmetic and traffic, whichever takes longer."""
        return max(flops / self.flops, nbytes / self.bytes)

    def bound(self, flops: float, nbytes: float) -> str:
        return "arithmetic" if flops / self.flops >= nbytes / self.bytes else "bandwidth"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def take(device: Any, dtype: str, samples: int, seed: int = 0) -> Ceilings:
    """Measure both, on random numbers."""
    large = machine.is_accelerator(device)
    side, nbytes = (8192, 2 * machine.GIB) if large else (256, 2**20)
    keys = jax.random.split(jax.random.key(seed), 3)
    a, b = (jax.random.normal(key, (side, side), dtype) for key in keys[:2])
    b = b * side**-0.5  # products keep the spread of `a`
    products, copies = (20, 200) if large else (1, 1)
    product = measure.repeated(lambda _, a, b: a @ b, products)
    product_s = measure.clock(product, [(a, b)], samples=samples, calls=products).seconds
    source = jax.random.bits(keys[2], (nbytes // 8,), jnp.uint32)  # half the bytes are read, half written
    copy_s = measure.clock(
        measure.repeated(lambda _, bits: jnp.invert(bits), copies), [(source,)], samples=samples, calls=copies
    ).seconds
    return Ceilings(
        flops=2 * side**3 / product_s,
        bytes=nbytes / copy_s,
        product=f"{dtype} product of {side} × {side} random numbers",
        copy=f"copy of {nbytes / 2 / 2**20:g} MiB",
    )
