"""Rotary position embeddings (arXiv 2104.09864), exact to fp32 rounding at any position a video can reach."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

_FINE = 1024  # positions per coarse step
_COARSE = 1024  # coarse steps on either side of zero
_SPAN = _FINE * _COARSE
_SPANS = 8
MAX_POSITIONS = _SPANS * _SPAN
"""Positions from −8,388,608 to 8,388,608 are exact: 60 hours of video at a frame a second. Others must be refused before."""


def rotation(
    positions: Int[Array | np.ndarray, "*N"], head_width: int, theta: float
) -> tuple[Float32[Array, "*N half"], Float32[Array, "*N half"]]:
    """Cosine and sine of the rotary angles, for `rotate`.

    In fp32, position × frequency loses up to 2⁻⁶ rad at position 385,000. So the position is split into whole spans, a coarse
    and a fine part, whose tables are computed in float64, and the angles are added by the angle-sum identities. Where there
    is no whole span, adding its angle, 0, changes no bit.

    Args:
      positions: from -MAX_POSITIONS to MAX_POSITIONS.
      head_width: D; half = D / 2.
      theta: base of the frequencies.
    """
    frequency = theta ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    fine = np.arange(_FINE)[:, None] * frequency
    coarse = np.arange(-_COARSE, _COARSE)[:, None] * _FINE * frequency

    spans = np.arange(-_SPANS, _SPANS + 1)[:, None] * _SPAN * frequency

    def table(function: Callable, angles: np.ndarray) -> Array:
        return jnp.asarray(function(angles), jnp.float32)

    def angles(at: Array, steps: np.ndarray) -> tuple[Array, Array]:
        return table(np.cos, steps)[at], table(np.sin, steps)[at]

    def add(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        (cos_a, sin_a), (cos_b, sin_b) = one, other
        return cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b

    positions = jnp.asarray(positions)
    span = jnp.sign(positions) * (jnp.abs(positions) // _SPAN)  # towards zero
    rest = positions - span * _SPAN
    high, low = rest // _FINE + _COARSE, rest % _FINE
    return add(add(angles(span + _SPANS, spans), angles(high, coarse)), angles(low, fine))


def rotate(
    x: Float[Array | np.ndarray, "*N D"], cos: Float[Array, "... half"], sin: Float[Array, "... half"]
) -> Float[Array, "*N D"]:
    """Rotate entry i with entry i + D/2, in fp32; the result has the dtype of `x`."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
