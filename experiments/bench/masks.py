"""The visibility rule as a function of two token indices, as PyTorch's FlexAttention takes masks.

NumPy only: PyTorch's worker imports this without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from vxl2_jax.layout import Layout, PrefillRule


class Tokens(NamedTuple):
    """Arrays [L] over tokens in storage order: position, block of the token's group, whether it is a global token."""

    position: Any
    block: Any
    is_global: Any


def tokens(layout: Layout, rule: PrefillRule, *, streams: bool) -> Tokens:
    """The tokens of a layout in natural order, or stream by stream as our cache stores them."""
    group = np.concatenate([np.arange(layout.visual_length) // layout.visual, layout.global_groups])
    position = np.concatenate([layout.visual_positions(), layout.global_positions()])
    is_global = np.arange(layout.length) >= layout.visual_length
    order = np.arange(layout.length) if streams else np.argsort(position)
    block = (group // rule.block_size).astype(np.int32)
    return Tokens(position[order].astype(np.int32), block[order], is_global[order])


def window(rule: PrefillRule) -> int:
    """How many blocks a visual token looks back; for dense pre-filling more than any video has."""
    return 2**30 if rule.prev_blocks is None else rule.prev_blocks


def visible(query: Any, key: Any, tokens: Tokens, window: int) -> Any:
    """Whether query token `query` sees key token `key`: integers or broadcastable arrays of NumPy or PyTorch."""
    near = tokens.block[query] - tokens.block[key] <= window
    causal = tokens.position[key] <= tokens.position[query]
    return causal & (tokens.is_global[query] | tokens.is_global[key] | near)
