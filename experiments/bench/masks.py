"""The visibility rule as a function of two tokens, the form in which masks are given to PyTorch's FlexAttention.

Needs NumPy only: the process that runs PyTorch imports this without JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from vxl2_jax.layout import Layout, PrefillRule

EVERY_BLOCK = 2**30
"""The window of dense pre-fill, in blocks."""


class Tokens(NamedTuple):
    """Of every token in storage order, arrays [L]: position, block of its group, whether it is a global token."""

    position: Any
    block: Any
    is_global: Any


def tokens(layout: Layout, rule: PrefillRule, *, in_streams: bool = False) -> Tokens:
    """The tokens of a layout in natural order, or stream by stream as our cache holds them."""
    group = np.concatenate([np.arange(layout.visual_length) // layout.visual, layout.global_groups])
    position = np.concatenate([layout.visual_positions(), layout.global_positions()])
    is_global = np.arange(layout.length) >= layout.visual_length
    order = np.arange(layout.length) if in_streams else np.argsort(position)
    block = (group // rule.block_size).astype(np.int32)
    return Tokens(position[order].astype(np.int32), block[order], is_global[order])


def window(rule: PrefillRule) -> int:
    """How many blocks a visual token looks back."""
    return EVERY_BLOCK if rule.prev_blocks is None else rule.prev_blocks


def allowed(query: Any, key: Any, of: Tokens, window: int) -> Any:
    """Whether query token number `query` may attend to key token `key`: integers or arrays, of NumPy or PyTorch."""
    near = of.block[query] - of.block[key] <= window
    return (of.position[key] <= of.position[query]) & (of.is_global[query] | of.is_global[key] | near)
