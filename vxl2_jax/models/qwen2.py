"""Qwen2.5 decoder. One layer is a linen module; the stack is a scan over stacked parameters.

The layer does not know what its queries attend to: it hands q, k, v to the caller's `attend`, which
owns positions, cache and visibility. So pre-filling, the question pass, decoding and training are the
same network under different callers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from vxl2_jax.config import LanguageConfig
from vxl2_jax.models.linear import Linear

Params = Any
# (q [..., N, H, D], k [..., N, K, D], v [..., N, K, D], state) → (mixed [..., N, H, D], state);
# k comes before rotation.
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


class RMSNorm(nn.Module):
    """Root-mean-square norm with fp32 statistics, scaled in the input's dtype as Qwen2 does."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + self.eps)
        return scale.astype(x.dtype) * h.astype(x.dtype)


class DecoderLayer(nn.Module):
    """Pre-norm attention and SwiGLU. Shapes: [..., N, E] → [..., N, E], and `attend`'s new state.

    `keys_only=True` stops after `attend` was handed the keys and values (its output is not used):
    all that the last layer owes a video token.
    """

    config: LanguageConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, attend: Attend, state: Any = None, keys_only: bool = False
    ) -> tuple[jax.Array, Any]:
        cfg = self.config

        def norm(name):
            return RMSNorm(cfg.norm_eps, name=name)

        def linear(width, name, bias=False):
            return Linear(width, use_bias=bias, name=name)

        def heads(h):
            return rearrange(h, "... n (h d) -> ... n h d", d=cfg.head_width)

        h = norm("norm_attention")(x)
        k = heads(linear(cfg.kv_heads * cfg.head_width, "key", True)(h))
        v = heads(linear(cfg.kv_heads * cfg.head_width, "value", True)(h))
        q = heads(linear(cfg.heads * cfg.head_width, "query", True)(h))
        mixed, state = attend(q, k, v, state)
        if keys_only:
            return x, state
        x = x + linear(cfg.width, "out")(rearrange(mixed, "... n h d -> ... n (h d)"))
        h = norm("norm_mlp")(x)
        gated = nn.silu(linear(cfg.mlp, "gate")(h)) * linear(cfg.mlp, "up")(h)
        return x + linear(cfg.width, "down")(gated), state


def embed(params: Params, ids: jax.Array) -> jax.Array:
    """Token ids [N] → embeddings [N, E]."""
    return params["embed"][ids]


def logits(params: Params, config: LanguageConfig, x: jax.Array) -> jax.Array:
    """Residual stream [..., E] → fp32 logits [..., vocabulary]: final norm and head."""
    h = RMSNorm(config.norm_eps).apply({"params": params["norm"]}, x)
    head = params["embed"].T if config.tied else params["head"]
    return jnp.matmul(h, head, preferred_element_type=jnp.float32)


def run_layers(
    params: Params,
    config: LanguageConfig,
    x: jax.Array,
    attend: Callable[..., tuple[jax.Array, Any]],
    state: Any = None,
    *,
    last_keys_only: bool = False,
    remat: bool = False,
) -> tuple[jax.Array, Any]:
    """Scan the stacked layers. `attend(q, k, v, state, layer)` gets the layer's number as a traced int.

    Shapes: x [..., N, E] → [..., N, E]. With `last_keys_only` the returned stream is that before the
    last layer (see `DecoderLayer`). With `remat` a gradient keeps only the input of each layer and makes
    its activations again (without `last_keys_only`).
    """
    module = DecoderLayer(config)

    def step(carry, per_layer, keys_only=False):
        x, state = carry
        layer_params, layer = per_layer

        def see(q, k, v, s):
            return attend(q, k, v, s, layer)

        return module.apply({"params": layer_params}, x, see, state, keys_only), None

    stack, count = params["layers"], config.layers
    if not last_keys_only:
        each = jax.checkpoint(step, prevent_cse=False) if remat else step
        return jax.lax.scan(each, (x, state), (stack, jnp.arange(count)))[0]

    # Indexing the stack inside the loop, not slicing it before: a slice would copy every parameter.
    def pick(layer):
        return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, layer, keepdims=False), stack)

    carry, _ = jax.lax.scan(lambda c, i: step(c, (pick(i), i)), (x, state), jnp.arange(count - 1))
    return step(carry, (pick(count - 1), jnp.int32(count - 1)), keys_only=True)[0]


def init(key: jax.Array, config: LanguageConfig) -> Params:
    """Random fp32 parameters, layers stacked along axis 0."""
    embed_key, head_key, layer_key = jax.random.split(key, 3)
    x = jnp.zeros((1, config.width))

    def see(q, k, v, s):
        return (q, s)

    def init_layer(k):
        return DecoderLayer(config).init(k, x, see)["params"]

    def normal(k, shape):
        return 0.02 * jax.random.normal(k, shape)

    params = {
        "embed": normal(embed_key, (config.vocabulary, config.width)),
        "layers": jax.vmap(init_layer)(jax.random.split(layer_key, config.layers)),
        "norm": {"scale": jnp.ones((config.width,))},
    }
    if not config.tied:
        params["head"] = normal(head_key, (config.width, config.vocabulary))
    return params
