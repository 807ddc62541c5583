"""Maps the original's tensors to the leaves of our parameter tree, in one table.

Loading, writing and checking checkpoints all derive from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from operator import getitem
from typing import Any

import numpy as np
from einops import rearrange

from vxl2_jax.config import ModelConfig


@dataclass(frozen=True)
class WeightTransform:
    """How a tensor's axes change from the original's layout to ours, and back.

    rows_axis: where the original's first axis is in ours: `to_ours` can be applied to some of its rows.
    """

    to_ours: Callable
    to_original: Callable
    rows_axis: int = 0


@cache  # the same axes are the same transform, also as an argument of compiled programs
def _einops(original: str, ours: str, **sizes: int) -> WeightTransform:
    """Of tensors whose first axis is our last one: the outputs."""
    return WeightTransform(
        lambda a: rearrange(a, f"{original} -> {ours}", **sizes),
        lambda a: rearrange(a, f"{ours} -> {original}", **sizes),
        rows_axis=-1,
    )


IDENTITY = WeightTransform(lambda a: a, lambda a: a)
LINEAR = _einops("o i", "i o")
POINTWISE_CONV_1D = _einops("o i 1", "i o")
POINTWISE_CONV_3D = _einops("o i 1 1 1", "i o")
CONV_3D = _einops("o i t h w", "t h w i o")


@dataclass(frozen=True)
class KeyMapping:
    """Maps the original's tensor `original_key` to our leaf `path`.

    If `layers` is not None, our leaf stacks that many tensors, and `original_key` contains `{}` for the layer's number.
    """

    path: tuple[str, ...]
    original_key: str
    transform: WeightTransform = IDENTITY
    layers: int | None = None

    def original_keys(self) -> list[str]:
        """The original's keys, in the order in which our leaf stacks them."""
        key = self.original_key
        return [key] if self.layers is None else [key.format(i) for i in range(self.layers)]

    def leaf(self, tree: Any) -> Any:
        """Our leaf in a parameter tree."""
        return reduce(getitem, self.path, tree)


IGNORED = ("model.text_mlp.", ".vision_model.post_layernorm.", ".vision_model.head.", "rotary_emb.inv_freq")
"""Parts of the keys of tensors that are never used; they may be present or absent."""


def _affine(
    path: tuple[str, ...], original: str, transform: WeightTransform, layers: int | None = None
) -> list[KeyMapping]:
    return [
        KeyMapping((*path, "kernel"), f"{original}.weight", transform, layers),
        KeyMapping((*path, "bias"), f"{original}.bias", IDENTITY, layers),
    ]


def _norm(path: tuple[str, ...], original: str, layers: int | None = None) -> list[KeyMapping]:
    return [
        KeyMapping((*path, "scale"), f"{original}.weight", IDENTITY, layers),
        KeyMapping((*path, "bias"), f"{original}.bias", IDENTITY, layers),
    ]


def vision_mappings(config: ModelConfig) -> list[KeyMapping]:
    """The SigLIP tower."""
    root, n, patch = "model.vision_tower.vision_tower.vision_model", config.vision.layers, config.vision.patch_size
    flat = _einops("o c h w", "(h w c) o", h=patch, w=patch)
    mappings = _affine(("vision", "patch"), f"{root}.embeddings.patch_embedding", flat)
    mappings += [KeyMapping(("vision", "position"), f"{root}.embeddings.position_embedding.weight")]
    layer = f"{root}.encoder.layers.{{}}"
    for i in (1, 2):
        mappings += _norm(("vision", "layers", f"norm_{i}"), f"{layer}.layer_norm{i}", n)
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj")):
        mappings += _affine(("vision", "layers", "attention", ours), f"{layer}.self_attn.{theirs}", LINEAR, n)
    for ours, theirs in (("mlp_in", "fc1"), ("mlp_out", "fc2")):
        mappings += _affine(("vision", "layers", ours), f"{layer}.mlp.{theirs}", LINEAR, n)
    return mappings


def dts_mappings() -> list[KeyMapping]:
    """The DTS encoder."""
    root = "model.sae"
    mappings = [KeyMapping(("dts", "temporal_encoding"), f"{root}.temporal_encoding")]
    for half in range(2):
        spatial, temporal, conv = (f"{root}.encoder.{3 * half + i}" for i in range(3))
        ours = ("dts", f"spatial_{half}")
        mappings += _norm((*ours, "norm"), f"{spatial}.norm")
        for name, key in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "proj_out")):
            mappings += _affine((*ours, name), f"{spatial}.{key}", POINTWISE_CONV_3D)
        ours = ("dts", f"temporal_{half}")
        mappings += _norm((*ours, "norm"), f"{temporal}.norm")
        for name, key in (("qkv", "qkv"), ("out", "proj_out")):
            mappings += _affine((*ours, name), f"{temporal}.{key}", POINTWISE_CONV_1D)
        for name, key in (("relative_key", "relative_position_k"), ("relative_value", "relative_position_v")):
            mappings += [KeyMapping((*ours, name), f"{temporal}.{key}.embeddings_table")]
        mappings += _affine(("dts", f"halve_{half}"), f"{conv}.conv", CONV_3D)
    return mappings


def language_mappings(config: ModelConfig) -> list[KeyMapping]:
    """The Qwen2.5 decoder."""
    n, layer, ours = config.language.layers, "model.layers.{}", ("language", "layers")
    mappings = [KeyMapping(("language", "embed"), "model.embed_tokens.weight")]
    for name, key in (("norm_attention", "input_layernorm"), ("norm_mlp", "post_attention_layernorm")):
        mappings += [KeyMapping((*ours, name, "scale"), f"{layer}.{key}.weight", IDENTITY, n)]
    for name, key in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        mappings += _affine((*ours, name), f"{layer}.self_attn.{key}", LINEAR, n)
    mappings += [KeyMapping((*ours, "out", "kernel"), f"{layer}.self_attn.o_proj.weight", LINEAR, n)]
    for name, key in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
        mappings += [KeyMapping((*ours, name, "kernel"), f"{layer}.mlp.{key}.weight", LINEAR, n)]
    mappings += [KeyMapping(("language", "norm", "scale"), "model.norm.weight")]
    if not config.language.tied:
        mappings += [KeyMapping(("language", "head"), "lm_head.weight", LINEAR)]
    return mappings


def key_mappings(config: ModelConfig) -> list[KeyMapping]:
    """All leaves of the parameter tree, each once."""
    projector = _affine(("projector", "linear_in"), "model.mm_projector.0", LINEAR)
    projector += _affine(("projector", "linear_out"), "model.mm_projector.2", LINEAR)
    return vision_mappings(config) + dts_mappings() + projector + language_mappings(config)


def original_shapes(config: ModelConfig, params: Any) -> dict[str, tuple[int, ...]]:
    """The original's keys and shapes. `params` is our parameter tree, or its shapes from `jax.eval_shape`."""
    shapes = {}
    for mapping in key_mappings(config):
        shape = mapping.leaf(params).shape
        shape = shape if mapping.layers is None else shape[1:]
        original = mapping.transform.to_original(np.broadcast_to(np.zeros((), np.int8), shape))
        shapes.update(dict.fromkeys(mapping.original_keys(), original.shape))
    return shapes
