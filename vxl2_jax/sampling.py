"""Drawing the next token from logits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key


class Sampling(NamedTuple):
    """temperature 0 is greedy; top_p keeps the smallest set of tokens with that much probability."""

    temperature: ArrayLike = 0.0
    top_p: ArrayLike = 1.0


def sample(logits: Float[Array, "*batch vocabulary"], sampling: Sampling, key: Key[Array, ""]) -> Int[Array, "*batch"]:
    """Next tokens from fp32 logits: greedy, or sampled by temperature and top-p.

    The key is the same for the whole batch, so that a question's sample does not depend on what else is asked.
    """
    temperature = jnp.asarray(sampling.temperature, jnp.float32)

    def draw(logits: jax.Array) -> jax.Array:
        # Relative to the largest: a low temperature does not overflow.
        scaled = (logits - logits.max()) / temperature
        kept = _nucleus(scaled, sampling.top_p)
        return jax.random.categorical(key, jnp.where(kept, scaled, -jnp.inf)).astype(jnp.int32)

    def greedy(logits: jax.Array) -> jax.Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    # A branch, not a selection: greedy decoding need not search for the nucleus.
    return jax.lax.cond(temperature > 0, jnp.vectorize(draw, signature="(v)->()"), greedy, logits)


def _nucleus(logits: jax.Array, top_p: ArrayLike) -> jax.Array:
    """bool [V]: the tokens of the smallest set with probability `top_p`, and those as probable as its last one.

    A token belongs to it if all that are more probable have less than `top_p` together. The least such logit is found
    by bisection over the order of fp32 numbers, in 32 sums, without sorting the vocabulary. logits: at most 0.
    """
    probability = jax.nn.softmax(logits)
    # The bits of numbers that are not negative are in the order of the numbers.
    depth = jax.lax.bitcast_convert_type(jnp.maximum(-logits, 0.0), jnp.int32)

    def halve(_, bounds):
        low, high = bounds  # tokens of depth `low` belong, those of depth `high` do not
        middle = low + (high - low) // 2
        belongs = jnp.sum(jnp.where(depth < middle, probability, 0.0)) < top_p
        return jnp.where(belongs, middle, low), jnp.where(belongs, high, middle)

    deepest, _ = jax.lax.fori_loop(0, 32, halve, (jnp.int32(0), jnp.int32(2**31 - 1)))
    return depth <= deepest
