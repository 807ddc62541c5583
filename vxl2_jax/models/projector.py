"""The projector: DTS maps to visual tokens of the language model's width."""

from __future__ import annotations

from einops import reduce
from flax import linen as nn
from jaxtyping import Array, Float

from vxl2_jax.models.linear import Linear


class Projector(nn.Module):
    """Linear → exact GELU → average pooling → Linear, with V = (y / pool) · (x / pool) tokens per group.

    The original pools after the last Linear. The two commute, and pooling first does a quarter of the work. `pool=1`
    gives the unpooled tokens of the original's image branch.
    """

    width: int

    @nn.compact
    def __call__(self, maps: Float[Array, "G y x C"], pool: int = 2) -> Float[Array, "G V {self.width}"]:
        hidden = nn.gelu(Linear(self.width, name="linear_in")(maps), approximate=False)
        pooled = reduce(hidden, "g (y py) (x px) e -> g (y x) e", "mean", py=pool, px=pool)
        return Linear(self.width, name="linear_out")(pooled)
