"""Rotary position embeddings (arXiv 2104.09864), exact to fp32 rounding at any position a video can reach."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

_FINE = 1024  # positions per coarse step
_COARSE = 1024  # coarse steps on either side of zero: positions up to ±1,048,576


def rotation(
    positions: Int[Array | np.ndarray, "*N"], head_width: int, theta: float
) -> tuple[Float32[Array, "*N half"], Float32[Array, "*N half"]]:
    """Cosine and sine of the rotary angles, for `rotate`.

    In fp32, position × frequency loses up to 2⁻⁶ rad at position 385,000. So the position is split into a coarse and a
    fine part, whose tables are computed in float64, and the two angles are added by the angle-sum identities.

    Args:
      positions: may be negative.
      head_width: D; half = D / 2.
      theta: base of the frequencies.
    """
    frequency = theta ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    fine = np.arange(_FINE)[:, None] * frequency
    coarse = np.arange(-_COARSE, _COARSE)[:, None] * _FINE * frequency

    def table(function: Callable, angles: np.ndarray) -> Array:
        return jnp.asarray(function(angles), jnp.float32)

    high, low = positions // _FINE + _COARSE, positions % _FINE
    cos_h, sin_h = table(np.cos, coarse)[high], table(np.sin, coarse)[high]
    cos_l, sin_l = table(np.cos, fine)[low], table(np.sin, fine)[low]
    return cos_h * cos_l - sin_h * sin_l, sin_h * cos_l + cos_h * sin_l


def rotate(
    x: Float[Array | np.ndarray, "*N D"], cos: Float[Array, "... half"], sin: Float[Array, "... half"]
) -> Float[Array, "*N D"]:
    """Rotate entry i with entry i + D/2, in fp32; the result has the dtype of `x`."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
