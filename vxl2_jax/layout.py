"""Where every token of a watched video lies, and who attends to whom: the one place that knows.

A prompt is, in natural order: prefix, then per group of four frames its timestamp tokens and its V
visual tokens, then the question. Storage keeps two streams apart: the *visual* stream (G·V tokens,
perfectly regular) and the *global* stream (prefix, then every timestamp token). Attention does not
mind storage order as long as positions are right, and with the streams apart the rule of chunk-based
pre-filling (arXiv 2506.19225)

    allowed(q, k) = k ≤ q and (q is global, or k is global, or block(q) − block(k) ≤ prev_blocks)

gives every query one contiguous range of keys in each stream. `key_ranges` says which; masks, pair
counts, kernels and training all derive from it.

Letters: G groups, V visual tokens per group, P prefix tokens. Everything here is NumPy on the host.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

VISUAL, GLOBAL = 0, 1
"""Stream numbers: the order of streams wherever both are passed."""


@dataclass(frozen=True)
class Layout:
    """Lengths from which all else follows. `stamps[g]` is the number of timestamp tokens of group g."""

    prefix: int
    stamps: tuple[int, ...]
    visual: int

    @property
    def groups(self) -> int:
        return len(self.stamps)

    @property
    def visual_length(self) -> int:
        """Tokens of the visual stream."""
        return self.groups * self.visual

    @cached_property
    def timestamp_ends(self) -> np.ndarray:
        """int32 [G]: index in the global stream just past each group's timestamp."""
        return (self.prefix + np.cumsum(np.asarray(self.stamps, np.int32))).astype(np.int32)

    @cached_property
    def timestamp_starts(self) -> np.ndarray:
        """int32 [G]: index in the global stream of each group's first timestamp token."""
        return self.timestamp_ends - np.asarray(self.stamps, np.int32)

    def global_range(self, first: int, last: int) -> tuple[int, int]:
        """The global tokens that come with the groups `first` … `last` − 1; the prefix comes with group 0."""

        def bound(group):
            return int(self.timestamp_ends[group - 1]) if group else self.prefix

        return bound(first) if first else 0, bound(last)

    def global_rows(self, groups: Iterable[int]) -> np.ndarray:
        """int32: the global tokens of the prefix and of some groups."""
        stamps = [np.arange(self.timestamp_starts[g], self.timestamp_ends[g]) for g in groups]
        return np.concatenate([np.arange(self.prefix), *stamps]).astype(np.int32)

    def visual_rows(self, groups: Iterable[int]) -> np.ndarray:
        """int32: the visual tokens of some groups."""
        return (
            (np.asarray(list(groups), np.int32)[:, None] * self.visual + np.arange(self.visual))
            .reshape(-1)
            .astype(np.int32)
        )

    @property
    def global_length(self) -> int:
        """Tokens of the global stream."""
        return self.prefix + sum(self.stamps)

    @property
    def length(self) -> int:
        """Tokens of prefix and video: the position of a question's first token."""
        return self.global_length + self.visual_length

    @cached_property
    def global_groups(self) -> np.ndarray:
        """int32 [global_length]: the group of each global token; the prefix counts as group 0."""
        return np.repeat(np.arange(-1, self.groups), (self.prefix, *self.stamps)).clip(0).astype(np.int32)

    def visual_positions(self, visual: int | None = None) -> np.ndarray:
        """int32 [G·visual]: positions of the visual tokens, were there `visual` of them per group.

        With `visual` = V // compression these are the positions of a memory that is sparse throughout.
        """
        per_group = self.visual if visual is None else visual
        g, i = np.divmod(np.arange(self.groups * per_group), max(per_group, 1))
        return (self.timestamp_ends[g] + g * per_group + i).astype(np.int32)

    def global_positions(self, visual: int | None = None) -> np.ndarray:
        """int32 [global_length]: positions of the global tokens, with `visual` tokens per group."""
        per_group = self.visual if visual is None else visual
        return (np.arange(self.global_length) + self.global_groups * per_group).astype(np.int32)

    def chunk_of_group(self, chunk_size: int) -> np.ndarray:
        """int32 [G]: bi-level chunk of each group, counted from 1 (chunk 0 is the prefix)."""
        return (np.arange(self.groups) // chunk_size + 1).astype(np.int32)

    def chunks(self, chunk_size: int) -> int:
        """Number of video chunks; the last may be short."""
        return -(-self.groups // chunk_size)


@dataclass(frozen=True)
class PrefillRule:
    """Chunk-based pre-filling: blocks of `block_size` groups; `prev_blocks` None is dense pre-fill."""

    block_size: int = 4
    prev_blocks: int | None = 3

    def first_group(self, group: np.ndarray) -> np.ndarray:
        """The earliest group whose visual tokens a visual token of `group` attends to."""
        if self.prev_blocks is None:
            return np.zeros_like(group)
        return np.maximum(group // self.block_size - self.prev_blocks, 0) * self.block_size


def key_ranges(layout: Layout, rule: PrefillRule, stream: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """The visibility rule: what the queries `start … stop − 1` of a stream attend to.

    Returns int32 starts [2, N] and stops [2, N]: query n sees the keys starts[s, n] ≤ index < stops[s, n]
    of stream s (VISUAL, GLOBAL) and no others. Queries past the stream's end see nothing.
    """
    index = np.arange(start, stop)
    k_start = np.zeros((2, len(index)), np.int32)
    k_end = np.zeros((2, len(index)), np.int32)
    real = index < (layout.visual_length if stream == VISUAL else layout.global_length)
    seen = index[real]
    if stream == VISUAL:
        group = seen // layout.visual
        k_start[VISUAL, real] = rule.first_group(group) * layout.visual
        k_end[VISUAL, real] = seen + 1
        k_end[GLOBAL, real] = layout.timestamp_ends[group]
    else:
        k_end[VISUAL, real] = layout.global_groups[seen] * layout.visual
        k_end[GLOBAL, real] = seen + 1
    return k_start, k_end


def question_ranges(layout: Layout, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What `count` tokens after the video attend to, were they appended to the global stream: all of it, and their past.

    Returns int32 starts [2, count] and stops [2, count], as `key_ranges` does.
    """
    k_end = np.empty((2, count), np.int32)
    k_end[VISUAL] = layout.visual_length
    k_end[GLOBAL] = layout.global_length + np.arange(count) + 1
    return np.zeros_like(k_end), k_end


def attention_pairs(layout: Layout, rule: PrefillRule, question: int = 0) -> tuple[int, int]:
    """(pairs kept, causal pairs) over prefix, video and a question of `question` tokens."""
    kept = 0
    for stream, length in ((VISUAL, layout.visual_length), (GLOBAL, layout.global_length)):
        k_start, k_end = key_ranges(layout, rule, stream, 0, length)
        kept += int((k_end.astype(np.int64) - k_start).sum())
    k_start, k_end = question_ranges(layout, question)
    kept += int((k_end.astype(np.int64) - k_start).sum())
    total = layout.length + question
    return kept, total * (total + 1) // 2


def natural_mask(layout: Layout, rule: PrefillRule, question: int = 0) -> np.ndarray:
    """bool [L, L] in natural order (prefix, video, question): True = may attend. For tests and training.

    Inference never builds it: it is quadratic.
    """
    total = layout.length + question
    mask = np.zeros((total, total), bool)
    places = (layout.visual_positions(), layout.global_positions())
    for stream, rows in enumerate(places):
        ranges = zip(*key_ranges(layout, rule, stream, 0, len(rows)), strict=True)
        for keys, (k_start, k_end) in zip(places, ranges, strict=True):
            index = np.arange(len(keys))
            mask[np.ix_(rows, keys)] = (index >= k_start[:, None]) & (index < k_end[:, None])
    mask[layout.length :] = np.tri(total, dtype=bool)[layout.length :]
    return mask
