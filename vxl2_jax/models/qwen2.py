"""Qwen2.5 decoder: one layer as a linen module, all layers as a scan over stacked parameters or one after another.

A layer passes q, k and v to its caller's `attend` function, which applies positions, cache and mask. So pre-filling,
asking, decoding and training run the same network with different `attend` functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from pallas_kernels.kv_cache import Index
from vxl2_jax.config import LanguageConfig
from vxl2_jax.models import few_rows, quantised
from vxl2_jax.models.linear import Linear

Params = Any
# (q [..., N, H, D], k [..., N, K, D], v [..., N, K, D], state) → (output [..., N, H, D], state); k is not yet rotated.
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
# The same with the layer's number (a traced int) as a fifth argument.
AttendLayer = Callable[[jax.Array, jax.Array, jax.Array, Any, jax.Array], tuple[jax.Array, Any]]


class RMSNorm(nn.Module):
    """Root-mean-square norm with fp32 statistics, scaled in the input's dtype as in Qwen2.

    The output has that dtype, or float16 if the scale has: then the input is a wider residual stream (see `run_layers`).
    """

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "*N E"]) -> Float[Array, "*N E"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + self.eps)
        dtype = jnp.float16 if scale.dtype == jnp.float16 else x.dtype
        return scale.astype(dtype) * h.astype(dtype)


class DecoderLayer(nn.Module):
    """Pre-norm attention and SwiGLU. Returns the new residual stream and the new state of `attend`.

    With `keys_only` the layer stops after `attend`, ignores its output and returns `x`. A video token needs no more
    from the last layer than its key and value.
    """

    config: LanguageConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "*N E"], attend: Attend, state: Any = None, keys_only: bool = False
    ) -> tuple[Float[Array, "*N E"], Any]:
        cfg = self.config

        def norm(name: str) -> RMSNorm:
            return RMSNorm(cfg.norm_eps, name=name)

        def linear(width: int, name: str, bias: bool = False) -> Linear:
            return Linear(width, use_bias=bias, name=name)

        def split_heads(h: Array) -> Array:
            return rearrange(h, "... n (h d) -> ... n h d", d=cfg.head_width)

        h = norm("norm_attention")(x)
        k = split_heads(linear(cfg.kv_heads * cfg.head_width, "key", True)(h))
        v = split_heads(linear(cfg.kv_heads * cfg.head_width, "value", True)(h))
        q = split_heads(linear(cfg.heads * cfg.head_width, "query", True)(h))
        out, state = attend(q, k, v, state)
        if keys_only:
            return x, state
        x = x + _sum(linear(cfg.width, "out")(rearrange(out, "... n h d -> ... n (h d)")), cfg.axis)
        h = norm("norm_mlp")(x)
        gated = _gated(linear(cfg.mlp, "gate")(h), linear(cfg.mlp, "up")(h))
        return x + _sum(linear(cfg.width, "down")(gated), cfg.axis), state


def _sum(x: Float[Array, "*N E"], axis: str | None) -> Float[Array, "*N E"]:
    """The sum over devices, where the model is sharded; of float16 in float32, as the residual stream then is."""
    if axis is None:
        return x
    return jax.lax.psum(x.astype(jnp.float32) if x.dtype == jnp.float16 else x, axis)


def _gated(gate: Float[Array, "*N mlp"], up: Float[Array, "*N mlp"]) -> Float[Array, "*N mlp"]:
    """silu(gate) · up. A product of float16 that is too large becomes the largest number."""
    if gate.dtype != jnp.float16:
        return nn.silu(gate) * up
    largest = jnp.finfo(jnp.float16).max
    product = nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return jnp.clip(product, -largest, largest).astype(jnp.float16)


def dtype_of(params: Params) -> np.dtype:
    """The dtype of activations and caches: a norm keeps it, however the weights are quantised."""
    return params["norm"]["scale"].dtype


def embed(params: Params, config: LanguageConfig, ids: Int[ArrayLike, "*N"]) -> Float[Array, "*N E"]:
    """Token ids → embeddings."""
    table = params["embed"]
    is_wide = not isinstance(table, quantised.QuantisedWeight)
    found = table[ids] if is_wide else quantised.take(table, ids, dtype_of(params))
    return found if config.axis is None else jax.lax.all_gather(found, config.axis, axis=found.ndim - 1, tiled=True)


def logits(
    params: Params, config: LanguageConfig, x: Float[Array | np.ndarray, "*N E"]
) -> Float32[Array, "*N vocabulary"]:
    """Residual stream → logits: final norm and language-model head."""
    h: Any = RMSNorm(config.norm_eps).apply({"params": params["norm"]}, x)
    head = params["embed"] if config.tied else params["head"]
    apart = isinstance(params["layers"], tuple)  # on GPUs that read quantised weights as they are
    if config.axis is None:
        return _head(h, head, config.tied, apart)
    if config.tied:  # the table is split by width
        width = (head.values if isinstance(head, quantised.QuantisedWeight) else head).shape[-1]
        own = jax.lax.dynamic_slice_in_dim(h, jax.lax.axis_index(config.axis) * width, width, axis=-1)
        return jax.lax.psum(_head(own, head, True, apart), config.axis)
    return jax.lax.all_gather(_head(h, head, False, apart), config.axis, axis=h.ndim - 1, tiled=True)


def _head(h: Array, head: Any, tied: bool, apart: bool) -> Float32[Array, "*N vocabulary"]:
    if isinstance(head, quantised.QuantisedWeight):
        multiply = partial(quantised.head, reads_integers=apart)
        return few_rows.product(multiply, h, quantised.transposed(head) if tied else head)
    multiply = partial(jnp.matmul, preferred_element_type=jnp.float32)
    return few_rows.product(multiply, h, head.T if tied else head)


def run_layers(
    params: Params,
    config: LanguageConfig,
    x: Float[Array, "*N E"],
    attend: AttendLayer,
    state: Any = None,
    *,
    last_keys_only: bool = False,
    remat: bool = False,
) -> tuple[Float[Array, "*N E"], Any]:
    """Run all layers: as a scan if their parameters are stacked, otherwise one after another.

    Args:
      params: {"layers": parameters stacked along axis 0, or a tuple with those of each layer, …}.
      config: geometry.
      x: residual stream.
      attend: called in each layer.
      state: passed through all calls of `attend`.
      last_keys_only: run the last layer with `keys_only`, see `DecoderLayer`.
      remat: the backward pass keeps only each layer's input and recomputes its activations. For stacked layers without
        `last_keys_only`.

    Returns:
      The residual stream after the last layer (before it, with `last_keys_only`) and the final state.
    """
    x = residual_stream(x)

    def step(carry: tuple, layer_inputs: tuple, keys_only: bool = False) -> tuple[tuple, None]:
        x, state = carry
        layer_params, layer = layer_inputs

        def attend_here(q: Array, k: Array, v: Array, state: Any) -> tuple[Array, Any]:
            return attend(q, k, v, state, layer)

        own = quantised.join_groups(layer_params)
        return run_layer(own, config, x, attend_here, state, keys_only), None

    stack, count = params["layers"], config.layers
    if isinstance(stack, tuple):
        carry = x, state
        for layer, own in enumerate(stack):
            carry, _ = step(carry, (own, jnp.int32(layer)), keys_only=last_keys_only and layer == count - 1)
        return carry
    stack = quantised.split_groups(stack)
    if not last_keys_only:
        body = jax.checkpoint(step, prevent_cse=False) if remat else step
        return jax.lax.scan(body, (x, state), (stack, jnp.arange(count)))[0]

    # Index the stack inside the loop: slicing it before the loop would copy every parameter.
    carry, _ = jax.lax.scan(lambda c, i: step(c, (layer_of(stack, i), i)), (x, state), jnp.arange(count - 1))
    return step(carry, (layer_of(stack, count - 1), jnp.int32(count - 1)), keys_only=True)[0]


def run_layer(
    layer_params: Params,
    config: LanguageConfig,
    x: Float[Array, "*N E"],
    attend: Attend,
    state: Any = None,
    keys_only: bool = False,
) -> tuple[Float[Array, "*N E"], Any]:
    """Run one layer; see `DecoderLayer`."""
    return DecoderLayer(config).apply({"params": layer_params}, x, attend, state, keys_only)


def layer_of(stack: Params, layer: Index) -> Params:
    """The parameters of one layer of a stack."""
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, layer, keepdims=False), stack)


def residual_stream(x: Float[Array, "*N E"]) -> Float[Array, "*N E"]:
    """Embeddings as the input of the first layer: float16 is widened to float32, because sums of all layers may exceed
    float16's largest number, 65,504."""
    return x.astype(jnp.float32) if x.dtype == jnp.float16 else x


def separate_layers(params: Params) -> Params:
    """The parameters with a tree for each layer instead of the stack, whose arrays are freed one by one.

    A scan over stacked layers is one program for all layers, but on GPUs XLA copies each layer's weights out of the
    stack before it reads them. In a decoding step, which waits for its weights, that is three times the traffic.
    """

    def split(leaf: jax.Array) -> list[jax.Array]:
        parts = [jax.block_until_ready(part) for part in leaf]
        leaf.delete()
        return parts

    leaves, structure = jax.tree.flatten(params["layers"])
    layers = zip(*map(split, leaves), strict=True)
    return params | {"layers": tuple(jax.tree.unflatten(structure, layer) for layer in layers)}


def init(key: PRNGKeyArray, config: LanguageConfig) -> Params:
    """Random fp32 parameters, layers stacked along axis 0."""
    embed_key, head_key, layer_key = jax.random.split(key, 3)
    x = jnp.zeros((1, config.width))

    def init_layer(key: PRNGKeyArray) -> Params:
        return DecoderLayer(config).init(key, x, lambda q, k, v, state: (q, state))["params"]

    def normal(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
        return 0.02 * jax.random.normal(key, shape)

    params = {
        "embed": normal(embed_key, (config.vocabulary, config.width)),
        "layers": jax.vmap(init_layer)(jax.random.split(layer_key, config.layers)),
        "norm": {"scale": jnp.ones((config.width,))},
    }
    if not config.tied:
        params["head"] = normal(head_key, (config.width, config.vocabulary))
    return params
