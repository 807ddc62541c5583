"""Which tensor of the original is which leaf of our parameter tree: the one table, as rules.

A rule names a leaf of ours, the original's key (with `{}` for the layer's number where our leaf stacks
layers), and how the layout changes. Everything else (loading, writing, checking) is derived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from einops import rearrange

from vxl2_jax.config import ModelConfig


@dataclass(frozen=True)
class WeightTransform:
    """How a tensor's axes change from the original to ours, and back."""

    to_ours: Callable
    to_original: Callable


def _einops(original: str, ours: str, **sizes: int) -> WeightTransform:
    return WeightTransform(
        lambda a: rearrange(a, f"{original} -> {ours}", **sizes),
        lambda a: rearrange(a, f"{ours} -> {original}", **sizes),
    )


SAME = WeightTransform(lambda a: a, lambda a: a)
LINEAR = _einops("o i", "i o")
POINT_1D = _einops("o i 1", "i o")
POINT_3D = _einops("o i 1 1 1", "i o")
VOLUME = _einops("o i t h w", "t h w i o")


@dataclass(frozen=True)
class KeyMapping:
    """`path` in our tree ← `source` in the original; stacked over `layers` when that is not None."""

    path: tuple[str, ...]
    source: str
    layout: WeightTransform = SAME
    layers: int | None = None

    def sources(self) -> list[str]:
        """The original's keys, in the order in which our leaf stacks them."""
        return [self.source] if self.layers is None else [self.source.format(i) for i in range(self.layers)]


IGNORED = ("model.text_mlp.", ".vision_model.post_layernorm.", ".vision_model.head.", "rotary_emb.inv_freq")
"""Parts of a key that mark tensors the computation never uses; they may be present or absent."""


def _affine(path: tuple[str, ...], source: str, layout: WeightTransform, layers: int | None = None) -> list[KeyMapping]:
    return [
        KeyMapping((*path, "kernel"), f"{source}.weight", layout, layers),
        KeyMapping((*path, "bias"), f"{source}.bias", SAME, layers),
    ]


def _norm(path: tuple[str, ...], source: str, layers: int | None = None) -> list[KeyMapping]:
    return [
        KeyMapping((*path, "scale"), f"{source}.weight", SAME, layers),
        KeyMapping((*path, "bias"), f"{source}.bias", SAME, layers),
    ]


def vision_rules(config: ModelConfig) -> list[KeyMapping]:
    root, n, patch = "model.vision_tower.vision_tower.vision_model", config.vision.layers, config.vision.patch_size
    flat = _einops("o c h w", "(h w c) o", h=patch, w=patch)
    rules = _affine(("vision", "patch"), f"{root}.embeddings.patch_embedding", flat)
    rules += [KeyMapping(("vision", "position"), f"{root}.embeddings.position_embedding.weight")]
    layer = f"{root}.encoder.layers.{{}}"
    for i in (1, 2):
        rules += _norm(("vision", "layers", f"norm_{i}"), f"{layer}.layer_norm{i}", n)
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj")):
        rules += _affine(("vision", "layers", "attention", ours), f"{layer}.self_attn.{theirs}", LINEAR, n)
    for ours, theirs in (("mlp_in", "fc1"), ("mlp_out", "fc2")):
        rules += _affine(("vision", "layers", ours), f"{layer}.mlp.{theirs}", LINEAR, n)
    return rules


def dts_rules() -> list[KeyMapping]:
    root = "model.sae"
    rules = [KeyMapping(("dts", "temporal_encoding"), f"{root}.temporal_encoding")]
    for half in range(2):
        spatial, temporal, conv = (f"{root}.encoder.{3 * half + i}" for i in range(3))
        ours = ("dts", f"spatial_{half}")
        rules += _norm((*ours, "norm"), f"{spatial}.norm")
        for name, key in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "proj_out")):
            rules += _affine((*ours, name), f"{spatial}.{key}", POINT_3D)
        ours = ("dts", f"temporal_{half}")
        rules += _norm((*ours, "norm"), f"{temporal}.norm")
        for name, key in (("qkv", "qkv"), ("out", "proj_out")):
            rules += _affine((*ours, name), f"{temporal}.{key}", POINT_1D)
        for name, key in (("relative_key", "relative_position_k"), ("relative_value", "relative_position_v")):
            rules += [KeyMapping((*ours, name), f"{temporal}.{key}.embeddings_table")]
        rules += _affine(("dts", f"halve_{half}"), f"{conv}.conv", VOLUME)
    return rules


def language_rules(config: ModelConfig) -> list[KeyMapping]:
    n, layer, ours = config.language.layers, "model.layers.{}", ("language", "layers")
    rules = [KeyMapping(("language", "embed"), "model.embed_tokens.weight")]
    for name, key in (("norm_attention", "input_layernorm"), ("norm_mlp", "post_attention_layernorm")):
        rules += [KeyMapping((*ours, name, "scale"), f"{layer}.{key}.weight", SAME, n)]
    for name, key in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        rules += _affine((*ours, name), f"{layer}.self_attn.{key}", LINEAR, n)
    rules += [KeyMapping((*ours, "out", "kernel"), f"{layer}.self_attn.o_proj.weight", LINEAR, n)]
    for name, key in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
        rules += [KeyMapping((*ours, name, "kernel"), f"{layer}.mlp.{key}.weight", LINEAR, n)]
    rules += [KeyMapping(("language", "norm", "scale"), "model.norm.weight")]
    if not config.language.tied:
        rules += [KeyMapping(("language", "head"), "lm_head.weight", LINEAR)]
    return rules


def rules(config: ModelConfig) -> list[KeyMapping]:
    """Every leaf of the model's parameter tree, once."""
    projector = _affine(("projector", "linear_in"), "model.mm_projector.0", LINEAR)
    projector += _affine(("projector", "linear_out"), "model.mm_projector.2", LINEAR)
    return vision_rules(config) + dts_rules() + projector + language_rules(config)


def original_shapes(config: ModelConfig, shapes: dict) -> dict[str, tuple[int, ...]]:
    """The original's keys and shapes, derived from our tree's shapes.

    `shapes` is the parameter tree with anything that has `.shape` at the leaves
    (`jax.eval_shape` gives it).
    """
    found: dict[str, tuple[int, ...]] = {}
    for rule in rules(config):
        leaf = shapes
        for part in rule.path:
            leaf = leaf[part]
        shape = leaf.shape if rule.layers is None else leaf.shape[1:]
        probe = rule.layout.to_original(np.broadcast_to(np.zeros((), np.int8), shape))
        found.update({key: tuple(probe.shape) for key in rule.sources()})
    return found
