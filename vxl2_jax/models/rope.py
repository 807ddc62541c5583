"""Rotary positions, exact to fp32 rounding at any position a video can reach."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

_FINE = 1024  # positions per coarse step
_COARSE = 1024  # coarse steps on either side of zero: positions up to ±1,048,576


def rotation(positions: jax.Array, head_width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles.

    Forming position × frequency in fp32 loses up to 2⁻⁶ rad at position 385,000. Here the position is
    split into a coarse and a fine part whose tables are made in float64, and the angles are added by
    the angle-sum rule.

    Shapes: positions int32 [N] (negative ones, too) → two fp32 [N, head_width // 2].
    """
    frequency = theta ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    fine = np.arange(_FINE)[:, None] * frequency
    coarse = np.arange(-_COARSE, _COARSE)[:, None] * _FINE * frequency

    def table(f, angles):
        return jnp.asarray(f(angles), jnp.float32)

    high, low = positions // _FINE + _COARSE, positions % _FINE
    cos_h, sin_h = table(np.cos, coarse)[high], table(np.sin, coarse)[high]
    cos_l, sin_l = table(np.cos, fine)[low], table(np.sin, fine)[low]
    return cos_h * cos_l - sin_h * sin_l, sin_h * cos_l + cos_h * sin_l


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate-half in fp32, back to the dtype of `x`. Shapes: x [..., D]; cos, sin [..., D/2]."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
