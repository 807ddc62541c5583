"""Question pass and decoding: a `lax.scan` over new tokens, reading a cache it never changes.

Questions are run in batches; one question is a batch of one. What they read is streams of the memory: the dense
level, the sparse level, or a mixture of each question's own. Their own keys and values go to a *tail*, so asking
cannot change a memory. Weights are read once for all tokens of all questions, and wherever questions read the
same keys, these too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from pallas_kernels import attention
from pallas_kernels import decode as in_place
from pallas_kernels.attention import REFERENCE, Kernel, KVCache, tile_schedule
from vxl2_jax.buckets import round_up
from vxl2_jax.config import LanguageConfig, ModelConfig
from vxl2_jax.models import qwen2
from vxl2_jax.models.rope import rotate, rotation


class KVCacheView(NamedTuple):
    """What is read: streams, and the position of the first token after them.

    *Shared*: `position` is an int32 scalar, and all questions read the same. *Own*: `position` is int32 [B], and each
    of B questions reads a mixture of its own.

    For the reference, streams are read whole: `lengths` int32 [S] are the valid keys of each. Own: [S, B], and
    streams are [L · B, K, *, D], in which question b finds layer l as layer l · B + b. For kernels there are `items`,
    the runs of streams that are read, each shifted by a constant: of one new token for each question, for all
    questions at once, and of a whole question; own: the latter one for each question, stacked.
    """

    streams: tuple[KVCache, ...]
    lengths: jax.Array | None
    position: jax.Array
    items: tuple[in_place.WorkItems, in_place.WorkItems] | None = None

    @property
    def shared(self) -> bool:
        """Whether all questions read the same."""
        return jnp.ndim(self.position) == 0


class Sampling(NamedTuple):
    """temperature 0 is greedy; top_p keeps the smallest set of tokens with that much probability."""

    temperature: jax.Array | float = 0.0
    top_p: jax.Array | float = 1.0


def empty_tail(config: ModelConfig, base: KVCacheView, questions: int, length: int) -> KVCache:
    """Room for `length` tokens of each question (rounded up to what a TPU reads without copying), side by side."""
    lm = config.language
    shape = (lm.layers, lm.kv_heads, questions * round_up(length, 16), lm.head_width)
    return KVCache(*(jnp.zeros(shape, base.streams[0].k.dtype) for _ in "kv"))


def left_pad(ids: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Questions padded behind, ids int32 [B, N] with `count` [B] real tokens, padded in front instead: (ids, begin).

    `begin` int32 [B] is where each begins. Now all end at the same slot, and so will all their answers.
    """
    begin = ids.shape[1] - jnp.asarray(count, jnp.int32)
    return jax.vmap(jnp.roll)(ids, begin), begin


Observe = Callable[[Any, jax.Array, jax.Array, jax.Array], Any]
"""(seen, rotated q [B, N, H, D], log-sum-exp [B, N, H], layer) → seen."""

Read = Callable[[jax.Array, KVCache, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
"""(q [B, N, H, D] before rotation, tail, layer) → (out [B, N, H, D], log-sum-exp [B, N, H], rotated q)."""


def reader(
    kernel: Kernel, config: ModelConfig, base: KVCacheView, tail: KVCache, begin: jax.Array, slot: jax.Array, count: int
) -> Read:
    """How the tokens at slots slot … slot + count − 1 of each question's part of the tail read base and tail.

    Shapes: begin int32 [B], as in `extend`; of the tail, only its shape matters. Slots before a question's beginning
    are padding: they see nothing of the tail, and the rest of what they get means nothing.
    """
    slots = slot + jnp.arange(count)
    k_start = jnp.broadcast_to(begin[:, None], (len(begin), count))
    k_end = jnp.maximum(slots + 1, k_start)
    read = _read_whole if base.items is None else _read_runs
    return read(kernel, config.language, base, tail, _positions(base, begin, slots), k_start, k_end)


def _turn(lm: LanguageConfig, positions: jax.Array) -> list[jax.Array]:
    """The rotations to positions [...], for heads: [..., 1, D / 2]."""
    return [table[..., None, :] for table in rotation(positions, lm.head_width, lm.rope_theta)]


def _read_whole(
    kernel: Kernel,
    lm: LanguageConfig,
    base: KVCacheView,
    tail: KVCache,
    positions: jax.Array,
    k_start: jax.Array,
    k_end: jax.Array,
) -> Read:
    """From whole streams. positions, starts, stops int32 [B, N], the latter two in each question's part of the tail."""
    questions, count = k_start.shape
    groups = 1 if base.shared else questions  # what is shared is read once for the rows of all questions

    def grouped(a):
        return a.reshape(groups, -1, *a.shape[2:])

    numbers, own = jnp.arange(questions), _turn(lm, positions)

    def ready(streams: tuple[KVCache, ...], k_start: jax.Array, k_end: jax.Array) -> attention.AttentionPlan:
        def one(*bounds):
            return attention.plan_attention(kernel, *bounds, heads=lm.heads, streams=streams)

        return jax.vmap(one)(k_start, k_end)

    of_tail = ready((tail,), k_start[:, None], k_end[:, None])
    # Padding sees nothing of the base either, so that it costs nothing.
    keys = jnp.asarray(base.lengths).reshape(len(base.streams), groups).T[..., None]
    keys = jnp.where(grouped(k_end > k_start)[:, None], keys, 0)
    of_base = ready(base.streams, jnp.zeros_like(keys), keys)

    def read(q, tail, layer):
        def base_of(args):
            number, q, reads = args
            return attention.attend(q, base.streams, reads, layer=layer * groups + number)

        def tail_of(args):
            # A copy of this question's part in this layer, small: the reference reads in large tiles.
            number, q, reads = args
            parts = (rearrange(a, "l k (b t) d -> l b k t d", b=questions) for a in tail)
            return attention.attend(q, (KVCache(*(part[layer, number][None] for part in parts)),), reads)

        q = rotate(q, *own)
        out, lse = jax.lax.map(base_of, (numbers[:groups], grouped(q), of_base))
        parts = (out.reshape(q.shape), lse.reshape(q.shape[:-1])), jax.lax.map(tail_of, (numbers, q, of_tail))
        out, lse = tile_schedule.merge_partials(*map(jnp.stack, zip(*parts, strict=True)), axis=0)
        return out.astype(q.dtype), lse, q

    return read


def _read_runs(
    kernel: Kernel,
    lm: LanguageConfig,
    base: KVCacheView,
    tail: KVCache,
    positions: jax.Array,
    k_start: jax.Array,
    k_end: jax.Array,
) -> Read:
    """In place. positions, starts, stops int32 [B, N], the latter two in each question's part of the tail."""
    questions, count = k_start.shape
    parts = jnp.arange(questions)[:, None] * (tail.k.shape[2] // questions)
    k_start, k_end = k_start + parts, k_end + parts
    fine, coarse = base.items
    ready = partial(in_place.plan_segments, kernel, repeats=lm.heads // lm.kv_heads)
    # One token of each question, or questions that read the same, stand in the rows of one call.
    together, flat = base.shared or count == 1, lambda a: a.reshape(-1, *a.shape[2:])
    if together:
        reads = ready(fine if count == 1 else coarse, flat(k_start), flat(k_end))
        by_run = _turn(lm, flat(positions) - reads.shift)
    else:
        reads = jax.vmap(ready)(coarse, k_start, k_end)
        by_run = _turn(lm, positions[:, None] - reads.shift)
    own = _turn(lm, positions)

    def read(q, tail, layer):
        def one(args):
            q, own_q, reads, by_run = args
            return in_place.attend(rotate(q[None], *by_run), own_q, base.streams, tail, reads, layer=layer)

        own_q = rotate(q, *own)
        if together:
            out, lse = one((flat(q), flat(own_q), reads, by_run))
        else:
            out, lse = jax.lax.map(one, (q, own_q, reads, by_run))
        return out.reshape(q.shape), lse.reshape(q.shape[:-1]), own_q

    return read


def _positions(base: KVCacheView, begin: jax.Array, slots: jax.Array) -> jax.Array:
    """int32 [B, N]: positions of the tokens at slots [N] of every question's tail."""
    return jnp.reshape(base.position, (-1, 1)) + slots - begin[:, None]


def extend(
    params: Any,
    config: ModelConfig,
    base: KVCacheView,
    tail: KVCache,
    begin: jax.Array,
    slot: jax.Array,
    ids: jax.Array,
    *,
    observe: Observe | None = None,
    seen: Any = None,
    kernel: Kernel = REFERENCE,
) -> tuple[KVCache, jax.Array, Any]:
    """Run tokens that see all of the base and, causally, their own question's part of the tail.

    Shapes: ids int32 [B, N], placed at slots slot … slot + N − 1 of each question's part; begin int32 [B]: the slot of
    each question's first token (slots before it are padding). Returns the tail with their keys and values written, and
    the residual stream [B, N, E]. With `observe`, which looks at every layer's attention, only what it has `seen` is of
    interest: the last layer then stops at its attention.
    """
    lm, count = config.language, ids.shape[1]
    positions = _positions(base, begin, slot + jnp.arange(count))
    cos, sin = (table[..., None, :] for table in rotation(positions, lm.head_width, lm.rope_theta))
    read = reader(kernel, config, base, tail, begin, slot, count)

    def attend(q, k, v, state, layer):
        tail, seen = state
        tail = _written(tail, rotate(k, cos, sin), v, layer, slot)
        out, lse, q = read(q, tail, layer)
        return out, (tail, observe(seen, q, lse, layer) if observe else seen)

    x = qwen2.embed(params["language"], ids)
    x, (tail, seen) = qwen2.run_layers(
        params["language"], lm, x, attend, (tail, seen), last_keys_only=observe is not None
    )
    return tail, x, seen


def _written(tail: KVCache, k: jax.Array, v: jax.Array, layer: jax.Array, slot: jax.Array) -> KVCache:
    """The tail with rows k, v [B, N, K, D] put at `slot` of every question's part, in one layer."""

    def put(cache: jax.Array, rows: jax.Array) -> jax.Array:
        parts = rearrange(cache, "l k (b t) d -> l k b t d", b=len(rows))
        rows = rearrange(rows, "b n k d -> 1 k b n d").astype(cache.dtype)
        return jax.lax.dynamic_update_slice(parts, rows, (layer, 0, 0, slot, 0)).reshape(cache.shape)

    return KVCache(put(tail.k, k), put(tail.v, v))


def sample(logits: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """Next tokens int32 [...] from fp32 logits [..., vocabulary]: greedy, or drawn by temperature and top-p.

    The key is the same for all, so that a question's draw does not depend on what else is asked.
    """
    temperature = jnp.asarray(sampling.temperature, jnp.float32)

    def draw(logits: jax.Array) -> jax.Array:
        scaled = logits / temperature
        ordered = jnp.sort(scaled, descending=True)
        probability = jax.nn.softmax(ordered)
        before = jnp.cumsum(probability) - probability
        least = jnp.min(jnp.where(before < sampling.top_p, ordered, jnp.inf))
        return jax.random.categorical(key, jnp.where(scaled >= least, scaled, -jnp.inf)).astype(jnp.int32)

    # A branch, not a selection: greedy answers need not sort the vocabulary.
    def greedy(logits):
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return jax.lax.cond(temperature > 0, jnp.vectorize(draw, signature="(v)->()"), greedy, logits)


class Generated(NamedTuple):
    """tokens int32 [B, max_new] (after a stop token: that token again), count int32 [B] (stop token included);
    logits fp32 [B, max_new, vocabulary], question_logits [B, N, vocabulary] (padding in front): only where asked."""

    tokens: jax.Array
    count: jax.Array
    logits: jax.Array | None
    question_logits: jax.Array | None


@partial(jax.jit, static_argnames=("config", "max_new", "keep_logits", "kernel"))
def generate(
    params: Any,
    config: ModelConfig,
    base: KVCacheView,
    ids: jax.Array,
    count: jax.Array,
    sampling: Sampling,
    key: jax.Array,
    *,
    max_new: int,
    keep_logits: bool = False,
    kernel: Kernel = REFERENCE,
) -> Generated:
    """Run a batch of questions over a base and decode up to `max_new` tokens of each.

    Shapes: ids int32 [B, N], of which the first `count` [B] are real; a question of no tokens is none at all, and fills
    a batch up. First new tokens come from the question pass. A question that has said a stop token goes on saying it,
    and once all have, the remaining steps do no work.
    """

    def to_logits(x):
        return qwen2.logits(params["language"], config.language, x)

    questions, room = ids.shape
    ids, begin = left_pad(ids, count)
    tail = empty_tail(config, base, questions, room + max_new)
    tail, x, _ = extend(params, config, base, tail, begin, jnp.int32(0), ids, kernel=kernel)
    first_logits = to_logits(x[:, -1])
    k_end = jnp.asarray(config.stop_tokens, jnp.int32)

    def step(carry, now):
        (tail, token), (slot, step_key) = carry, now
        done = jnp.isin(token, k_end) | (begin == room)

        def go_on(tail):
            tail, x, _ = extend(params, config, base, tail, begin, slot, token[:, None], kernel=kernel)
            logits = to_logits(x[:, 0])
            return tail, logits, sample(logits, sampling, step_key)

        def stay(tail):
            return (tail, jnp.zeros_like(first_logits), token)

        # Parity wants all steps whatever was said; otherwise finished answers cost nothing more.
        if keep_logits:
            tail, logits, following = go_on(tail)
            return (tail, following), (following, logits)
        tail, _, following = jax.lax.cond(done.all(), stay, go_on, tail)
        following = jnp.where(done, token, following)
        return (tail, following), (following, None)

    keys = jax.random.split(key, max_new)
    first = sample(first_logits, sampling, keys[0])
    _, (later, later_logits) = jax.lax.scan(step, (tail, first), (room + jnp.arange(max_new - 1), keys[1:]))
    tokens = jnp.concatenate([first[None], later]).T
    stopped = jnp.isin(tokens, k_end)
    length = jnp.where(stopped.any(axis=1), jnp.argmax(stopped, axis=1) + 1, max_new)
    if not keep_logits:
        return Generated(tokens, length, None, None)
    logits = jnp.swapaxes(jnp.concatenate([first_logits[None], later_logits]), 0, 1)
    return Generated(tokens, length, logits, to_logits(x))
