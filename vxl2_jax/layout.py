"""Positions, visibility and pooled lengths of the tokens of a watched video: the only place that defines them.

A prompt is, in natural order: the prefix; per group of four frames its timestamp tokens and its V visual tokens; the
question. The cache stores two streams apart: the *visual stream* (G·V tokens, perfectly regular) and the *global stream*
(the prefix, then the tokens of all timestamps). Attention does not depend on the order of storage as long as positions
are right, and with the streams apart the rule of chunk-based pre-filling (arXiv 2506.19225)

    allowed(q, k) = k ≤ q and (q is global, or k is global, or block(q) − block(k) ≤ prev_blocks)

gives every query one contiguous range of keys in each stream. `key_ranges` computes it; masks, pair counts, kernels and
training all derive from it.

Letters: G groups, V visual tokens per group, P prefix tokens, C chunks. Everything here is NumPy on the host.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

VISUAL, GLOBAL = 0, 1
"""Stream numbers: the order of streams wherever both are passed."""


@dataclass(frozen=True)
class Layout:
    """The lengths that determine everything else.

    Attributes:
      prefix: tokens before the video.
      timestamp_lengths: tokens of each group's timestamp.
      visual: visual tokens per group (V).
    """

    prefix: int
    timestamp_lengths: tuple[int, ...]
    visual: int

    @property
    def groups(self) -> int:
        """Number of groups (G)."""
        return len(self.timestamp_lengths)

    @property
    def visual_length(self) -> int:
        """Tokens of the visual stream."""
        return self.groups * self.visual

    @property
    def global_length(self) -> int:
        """Tokens of the global stream."""
        return self.prefix + sum(self.timestamp_lengths)

    @property
    def length(self) -> int:
        """Tokens of prefix and video: the position of a question's first token."""
        return self.global_length + self.visual_length

    @cached_property
    def timestamp_ends(self) -> Int[np.ndarray, " G"]:
        """Index in the global stream just past each group's timestamp."""
        return (self.prefix + np.cumsum(np.asarray(self.timestamp_lengths, np.int32))).astype(np.int32)

    @cached_property
    def timestamp_starts(self) -> Int[np.ndarray, " G"]:
        """Index in the global stream of each group's first timestamp token."""
        return self.timestamp_ends - np.asarray(self.timestamp_lengths, np.int32)

    @cached_property
    def global_groups(self) -> Int[np.ndarray, " global"]:
        """The group of each token of the global stream; the prefix counts as group 0."""
        return np.repeat(np.arange(-1, self.groups), (self.prefix, *self.timestamp_lengths)).clip(0).astype(np.int32)

    def global_range(self, first: int, last: int) -> tuple[int, int]:
        """Range of the global tokens of the groups `first` … `last` − 1; the prefix belongs to group 0."""
        ends = (self.prefix, *self.timestamp_ends.tolist())
        return ends[first] if first else 0, ends[last]

    def global_rows(self, groups: Iterable[int] | Int[np.ndarray, " g"]) -> Int[np.ndarray, " n"]:
        """Indices of the prefix and of the timestamps of some groups."""
        timestamps = [np.arange(self.timestamp_starts[g], self.timestamp_ends[g]) for g in groups]
        return np.concatenate([np.arange(self.prefix), *timestamps]).astype(np.int32)

    def visual_rows(self, groups: Iterable[int] | Int[np.ndarray, " g"]) -> Int[np.ndarray, " n"]:
        """Indices of the visual tokens of some groups."""
        first = np.asarray(list(groups), np.int32)[:, None] * self.visual
        return (first + np.arange(self.visual)).reshape(-1).astype(np.int32)

    def visual_positions(self, compression: int = 1) -> Int[np.ndarray, " n"]:
        """Positions of the visual tokens [G·V]; with `compression`, of the pooled ones in a fully sparse cache."""
        pooled = self.pooled(compression)
        group, index = np.divmod(np.arange(self.groups * pooled), max(pooled, 1))
        return (self.timestamp_ends[group] + group * pooled + index).astype(np.int32)

    def global_positions(self, compression: int = 1) -> Int[np.ndarray, " global"]:
        """Positions of the global tokens; with `compression`, in a fully sparse cache."""
        return (np.arange(self.global_length) + self.global_groups * self.pooled(compression)).astype(np.int32)

    def question_positions(self, count: int) -> Int[np.ndarray, " N"]:
        """Positions of `count` tokens after the video."""
        return (self.length + np.arange(count)).astype(np.int32)

    # Bi-level caches: chunks of groups, each dense or sparse.

    def pooled(self, compression: int) -> int:
        """Visual tokens of a group after pooling `compression` tokens into one; an incomplete window is dropped."""
        return pooled(self.visual, compression)

    def sparse_length(self, compression: int) -> int:
        """Tokens of the sparse level: the position of a question asked of it."""
        return self.global_length + self.groups * self.pooled(compression)

    def mixed_length(self, compression: int, chunk_size: int, interior: int) -> int:
        """Tokens of a mixed cache in which the first, the last and `interior` other chunks are dense."""
        chunks = self.chunks(chunk_size)
        if interior >= chunks - 2:
            return self.length
        last = self.groups - (chunks - 1) * chunk_size
        dense = (interior + 1) * chunk_size + last
        return self.sparse_length(compression) + dense * (self.visual - self.pooled(compression))

    def chunks(self, chunk_size: int) -> int:
        """Number of video chunks (C); the last one may be short."""
        return -(-self.groups // chunk_size)

    def chunk_of_group(self, chunk_size: int) -> Int[np.ndarray, " G"]:
        """Chunk of each group, counted from 1 (chunk 0 is the prefix)."""
        return (np.arange(self.groups) // chunk_size + 1).astype(np.int32)

    def dense_groups(self, chunk_size: int, dense: Bool[np.ndarray, "*B C1"]) -> Bool[np.ndarray, "*B G"]:
        """Whether each group belongs to a dense chunk; `dense` includes the prefix, chunk 0."""
        return np.asarray(dense)[..., self.chunk_of_group(chunk_size)]

    def chunk_slots(self, compression: int, chunk_size: int) -> tuple[Int[np.ndarray, " C"], Int[np.ndarray, " C"]]:
        """Start and end of each chunk in the sparse level, timestamps included."""
        first = np.arange(0, self.groups, chunk_size)
        start = self.timestamp_starts[first] + first * self.pooled(compression)
        return start, np.append(start[1:], self.sparse_length(compression))


def pooled(visual: int, compression: int) -> int:
    """How many tokens remain of `visual` ones when windows of `compression` are pooled; a short window is dropped."""
    return visual // compression


@dataclass(frozen=True)
class PrefillRule:
    """Chunk-based pre-filling: blocks of `block_size` groups; prev_blocks None is dense pre-filling."""

    block_size: int = 4
    prev_blocks: int | None = 3

    def first_group(self, group: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        """The earliest group whose visual tokens a visual token of `group` attends to."""
        if self.prev_blocks is None:
            return np.zeros_like(group)
        return np.maximum(group // self.block_size - self.prev_blocks, 0) * self.block_size


def key_ranges(
    layout: Layout, rule: PrefillRule, stream: int, start: int, stop: int
) -> tuple[Int[np.ndarray, "2 N"], Int[np.ndarray, "2 N"]]:
    """The visibility rule: what the queries `start … stop − 1` of a stream attend to.

    Returns int32 k_start and k_end: query n sees the keys k_start[s, n] ≤ index < k_end[s, n] of stream s (VISUAL,
    GLOBAL) and no others. Queries past the stream's end see nothing.
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


def question_ranges(layout: Layout, count: int) -> tuple[Int[np.ndarray, "2 N"], Int[np.ndarray, "2 N"]]:
    """What `count` tokens after the video attend to, if they are appended to the global stream: the whole video and the
    tokens before them. Returns what `key_ranges` returns.
    """
    k_end = np.empty((2, count), np.int32)
    k_end[VISUAL] = layout.visual_length
    k_end[GLOBAL] = layout.global_length + np.arange(count) + 1
    return np.zeros_like(k_end), k_end


_PAIRS_AT_ONCE = 2**20
"""Queries whose key ranges are in memory at the same time."""


def attention_pairs(layout: Layout, rule: PrefillRule, question: int = 0) -> tuple[int, int]:
    """(pairs kept, causal pairs) over prefix, video and a question of `question` tokens."""
    kept = 0
    for stream, length in ((VISUAL, layout.visual_length), (GLOBAL, layout.global_length)):
        for start in range(0, length, _PAIRS_AT_ONCE):
            k_start, k_end = key_ranges(layout, rule, stream, start, min(start + _PAIRS_AT_ONCE, length))
            kept += int((k_end.astype(np.int64) - k_start).sum())
    k_start, k_end = question_ranges(layout, question)
    kept += int((k_end.astype(np.int64) - k_start).sum())
    total = layout.length + question
    return kept, total * (total + 1) // 2


def natural_mask(layout: Layout, rule: PrefillRule, question: int = 0) -> Bool[np.ndarray, "N N"]:
    """The attention mask in natural order (prefix, video, question): True where a token may attend. For tests.

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
