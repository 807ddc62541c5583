"""Weights in 8 or 4 bits: symmetric integers, rounded to nearest even, and their scales in float32.

Large weights are quantised: kernels of linear layers and convolutions, the embedding table and the language model's head.
Norms, biases and small tables keep the model's dtype. Products accumulate in float32 or int32.

| setting | kernels of linear layers | activations |
| --- | --- | --- |
| int8 | 8 bits, one scale per output channel | in the model's dtype |
| w8a8 | the same | 8 bits, one scale per token, computed on the fly: products of integers (`NARROW_INPUTS`) |
| int4 | 4 bits, one scale per output channel and `GROUP` inputs | in the model's dtype |

The embedding table, the head and the convolutions have 8 bits in every setting: the table's scales are per token, and a
convolution's activations keep the model's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from pallas_kernels.kv_cache import quantise as quantise_rows

WIDE, INT8, W8A8, INT4 = "wide", "int8", "w8a8", "int4"
SETTINGS = (WIDE, INT8, W8A8, INT4)
"""How a model's weights can be held; "wide" is the model's dtype."""
NARROW_INPUTS = ("gate", "up")
"""Linear layers of the language model whose activations W8A8 quantises. The others read them in the model's dtype.

With one scale per token, a few large channels leave few integers to the others. In SmolLM2 that costs 0.6 % of perplexity in
`gate` and `up`, which do most of the multiplications, 1.6 in query, key and value, 0.6 in `down`, whose input is a product
of two (arXiv 2405.14428), 1.1 in the head, and 0.2 in `out`, which does few of them (docs/results/studies.md). The vision half
quantises all.
"""
GROUP = 64
"""Inputs that share a scale in 4 bits. The last group of a kernel may have fewer."""
_FLOAT16_UNIT = 2.0**-11
"""What an integer counts in float16: a channel's largest value becomes 1/16."""
_COLUMNS = 8192
"""Columns of a head that are made wide at a time."""


@partial(jax.tree_util.register_dataclass, data_fields=("values", "scale"), meta_fields=("group", "activations"))
@dataclass(frozen=True)
class QuantisedWeight:
    """A weight as integers, or a stack of them along leading axes: weight ≈ values · scale.

    Attributes:
      values: int8 or int4, in the weight's shape.
      scale: float32; broadcasts against `values`, or with `group` has one row per group: [..., groups, out].
      group: rows of `values` [..., in, out] that share a scale; None: all of them.
      activations: activations are quantised too.
    """

    values: Any
    scale: Any
    group: int | None = None
    activations: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.values.shape

    @property
    def limit(self) -> int:
        """The largest value: 127 or 7."""
        return 7 if self.values.dtype == jnp.int4 else 127


class Scheme(NamedTuple):
    """How one weight is quantised: bits; whether scales are per row (embedding table) instead of per column; and `group`
    and `activations` as in `QuantisedWeight`."""

    bits: int = 8
    per_row: bool = False
    group: int | None = None
    activations: bool = False

    @property
    def channel_axis(self) -> int:
        """The axis of outputs: of rows in the table, of columns elsewhere."""
        return 0 if self.per_row else -1


def scheme_of(path: Sequence[str], setting: str) -> Scheme | None:
    """How the leaf at `path` of the parameter tree is quantised; None for what stays wide."""
    path = tuple(path)
    if setting == WIDE:
        return None
    if path == ("language", "embed"):
        return Scheme(per_row=True)
    if path == ("language", "head"):
        return Scheme()
    if path[-1] != "kernel":
        return None
    if path[-2].startswith("halve_"):  # a convolution
        return Scheme()
    if setting == INT4:
        return Scheme(4, group=GROUP)
    return Scheme(activations=setting == W8A8 and (path[0] != "language" or path[-2] in NARROW_INPUTS))


def quantise(weight: Float[Array, "*shape"], scheme: Scheme) -> QuantisedWeight:
    """Quantise one weight [..., in, out] (no stack of layers). Its largest value in a channel or group becomes ±127 or ±7."""
    weight = weight.astype(jnp.float32)
    largest, dtype = (127, jnp.int8) if scheme.bits == 8 else (7, jnp.int4)
    if scheme.group:
        rows = weight.shape[-2]
        groups = -(-rows // scheme.group)
        padded = jnp.pad(jnp.abs(weight), ((0, groups * scheme.group - rows), (0, 0)))
        peak = padded.reshape(groups, scheme.group, -1).max(axis=1)
    else:
        axes = (-1,) if scheme.per_row else tuple(range(weight.ndim - 1))
        peak = jnp.abs(weight).max(axis=axes, keepdims=True)
    scale = _scale(peak, largest)
    values = _round(weight, _by_row(scale, scheme.group, weight.shape[-2]), largest).astype(dtype)
    return QuantisedWeight(values, scale, scheme.group, scheme.activations)


def quantise_params(params: Any, setting: str) -> Any:
    """Quantise a parameter tree, whose layers are stacked along the first axis: one layer after another, so that only one
    is in float32."""

    def leaf(path: tuple, weight: Array) -> Any:
        names = [key.key for key in path]
        if (scheme := scheme_of(names, setting)) is None:
            return weight
        one = partial(quantise, scheme=scheme)
        return jax.lax.map(one, weight) if "layers" in names else one(weight)

    return jax.tree_util.tree_map_with_path(leaf, params)


def setting_of(params: Any) -> str:
    """The setting that a parameter tree was quantised with."""
    layers = params["language"]["layers"]
    kernel = (layers[0] if isinstance(layers, tuple) else layers)["gate"]["kernel"]
    if not isinstance(kernel, QuantisedWeight):
        return WIDE
    return W8A8 if kernel.activations else INT4 if kernel.group else INT8


def wide_inputs(params: Any) -> list[str]:
    """The quantised weights of a parameter tree whose activations are wide, such as "language.layers.down.kernel"."""
    found = set()
    for path, node in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_quantised):
        if is_quantised(node) and not node.activations:
            found.add(".".join(key.key for key in path if isinstance(key, jax.tree_util.DictKey)))
    return sorted(found)


def is_quantised(node: Any) -> bool:
    """Whether a node of a parameter tree is a quantised weight."""
    return isinstance(node, QuantisedWeight)


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays of a tree on a device, where two 4-bit numbers share a byte."""
    return sum(
        -(-leaf.size // 2) if leaf.dtype == jnp.int4 else leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def dequantise(weight: QuantisedWeight, dtype: Any) -> Float[Array, "*shape"]:
    """The wide weight, or a stack of them."""
    scale = _by_row(weight.scale, weight.group, weight.values.shape[-2])
    return (weight.values.astype(jnp.float32) * scale).astype(dtype)


def widen(tree: Any, dtype: Any) -> Any:
    """A tree of parameters with its quantised weights dequantised; others stay as they are."""
    return jax.tree.map(lambda a: dequantise(a, dtype) if is_quantised(a) else a, tree, is_leaf=is_quantised)


def split_groups(tree: Any) -> Any:
    """A tree of parameters, or of stacks of them, whose grouped values [..., in, out] are [..., groups, group, out].

    So XLA for TPUs multiplies a layer of a stack of 4-bit numbers in place: cut out as [in, out] and split into groups afterwards,
    it is copied, which takes seven times as long as the product of a row (by XLA's estimate for v5e). `join_groups` undoes it.
    """

    def split(node: Any) -> Any:
        if not is_quantised(node) or node.group is None or node.values.shape[-2] % node.group:
            return node
        *stack, rows, columns = node.values.shape
        return replace(node, values=node.values.reshape(*stack, rows // node.group, node.group, columns))

    return jax.tree.map(split, tree, is_leaf=is_quantised)


def join_groups(tree: Any) -> Any:
    """Undo `split_groups`."""

    def join(node: Any) -> Any:
        if not is_quantised(node) or node.values.ndim == node.scale.ndim:
            return node
        *stack, groups, group, columns = node.values.shape
        return replace(node, values=node.values.reshape(*stack, groups * group, columns))

    return jax.tree.map(join, tree, is_leaf=is_quantised)


def take(table: QuantisedWeight, ids: Int[Any, "*N"], dtype: Any) -> Float[Array, "*N width"]:
    """Rows of a table that has a scale per row.

    A single id is looked up twice: XLA for TPUs copies the whole table in every decoding step to cut one row of 8-bit
    numbers out of it, and reads several rows in place.
    """
    places = jnp.asarray(ids)
    wanted = jnp.broadcast_to(places.reshape(1), (2,)) if places.size == 1 else places
    found = (table.values[wanted].astype(jnp.float32) * table.scale[wanted]).astype(dtype)
    return found[0].reshape(*places.shape, -1) if places.size == 1 else found


def matmul(x: Float[Array, "*N in"], weight: QuantisedWeight, out_dtype: Any = None) -> Float32[Array, "*N out"]:
    """x · weight, for one weight [in, out] of a linear layer.

    out_dtype: of the products before they are scaled. None: x's, as of a wide layer's products, which takes half the
    memory of float32.
    """
    out_dtype = out_dtype or x.dtype
    if weight.group:
        return jnp.matmul(x, dequantise(weight, x.dtype), preferred_element_type=out_dtype).astype(jnp.float32)
    if weight.activations:
        integers, scale = quantise_rows(x)
        product = jnp.matmul(integers, weight.values, preferred_element_type=jnp.int32).astype(jnp.float32) * scale
        return product * weight.scale[0]
    # Integers up to 127 are exact in all dtypes, also as fractions, without which unscaled sums would overflow float16.
    unit = _FLOAT16_UNIT if x.dtype == jnp.float16 else 1.0
    values = weight.values.astype(x.dtype) * jnp.asarray(unit, x.dtype)
    product = jnp.matmul(x, values, preferred_element_type=out_dtype)
    return product.astype(jnp.float32) * (weight.scale[0] / unit)


def head(x: Float[Array, "*N in"], weight: QuantisedWeight, reads_integers: bool = False) -> Float32[Array, "*N out"]:
    """As `matmul`, with products in float32 and without a wide copy of the whole weight.

    XLA for CPUs and for GPUs older than Ampere would make that copy (2 GB for the released model), so the head is computed a
    slice of columns at a time there. XLA for TPUs and newer GPUs widens the weight tile by tile, and would copy it to slice it:
    three times the traffic.

    reads_integers: the GPU is a newer one, if it is a GPU.
    """
    whole = partial(matmul, out_dtype=jnp.float32)
    if weight.values.shape[1] <= _COLUMNS or reads_integers:
        return whole(x, weight)
    return jax.lax.platform_dependent(x, weight, tpu=whole, default=_matmul_by_slices)


def _matmul_by_slices(x: Float[Array, "*N in"], weight: QuantisedWeight) -> Float32[Array, "*N out"]:
    width = weight.values.shape[1]

    def columns(start: Any, count: int) -> Float32[Array, "*N count"]:
        return matmul(
            x, jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, count, axis=1), weight), jnp.float32
        )

    whole, rest = divmod(width, _COLUMNS)
    parts = jax.lax.map(lambda i: columns(i * _COLUMNS, _COLUMNS), jnp.arange(whole))
    product = jnp.moveaxis(parts, 0, -2).reshape(*x.shape[:-1], whole * _COLUMNS)
    return jnp.concatenate([product, columns(whole * _COLUMNS, rest)], axis=-1) if rest else product


def transposed(table: QuantisedWeight) -> QuantisedWeight:
    """An embedding table [vocabulary, width] as a head [width, vocabulary]."""
    return QuantisedWeight(table.values.T, table.scale.T, table.group, table.activations)


def _scale(peak: Float32[Array, "*shape"], largest: int) -> Float32[Array, "*shape"]:
    """Zeros get the smallest normal number: they stay zeros."""
    return jnp.maximum(peak / largest, jnp.finfo(jnp.float32).tiny)


def _round(x: Float32[Array, "*shape"], scale: Float32[Array, "*scale"], largest: int) -> Float32[Array, "*shape"]:
    return jnp.clip(jnp.round(x / scale), -largest, largest)


def _by_row(scale: Float32[Array, "*scale"], group: int | None, rows: int) -> Float32[Array, "*shape"]:
    """Scales that broadcast against values: with `group`, a row for each of `rows` inputs."""
    return scale if group is None else jnp.repeat(scale, group, axis=-2)[..., :rows, :]
