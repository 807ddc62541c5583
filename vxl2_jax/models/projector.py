"""Projector: DTS maps → language-width visual tokens, pooled 2×2."""

from __future__ import annotations

import jax
from einops import reduce
from flax import linen as nn


class Projector(nn.Module):
    """Linear → exact GELU → average pool → Linear. Shapes: [G, H, W, C] → [G, (H/pool)·(W/pool), D].

    The original pools after the last Linear; the two commute, and pooling first does a quarter of
    the work. `pool=1` gives the unpooled tokens of its image branch.
    """

    width: int

    @nn.compact
    def __call__(self, maps: jax.Array, pool: int = 2) -> jax.Array:
        hidden = nn.gelu(nn.Dense(self.width, name="linear_in")(maps), approximate=False)
        pooled = reduce(hidden, "g (y py) (x px) d -> g (y x) d", "mean", py=pool, px=pool)
        return nn.Dense(self.width, name="linear_out")(pooled)
