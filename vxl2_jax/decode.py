"""Question pass and decoding: a `lax.scan` over new tokens, reading a cache it never changes.

What a question reads is a tuple of streams and their lengths: the dense level, the sparse level, or a
mixed cache. Its own keys and values go to a *tail* of their own, so asking cannot change a memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import attention
from pallas_kernels import decode as in_place
from pallas_kernels.attention import REFERENCE, Kernel, Stream
from vxl2_jax.buckets import round_up
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import qwen2
from vxl2_jax.models.rope import rotate, rotation


class Base(NamedTuple):
    """What is read: streams, and the position of the first token after them (int32 scalar).

    Either whole streams (`lengths` int32 [len(streams)]: the valid keys of each), or, with `items`, the runs
    of them that the items name, each shifted by a constant: cut finely for one token, coarsely for a question.
    """

    streams: tuple[Stream, ...]
    lengths: jax.Array | None
    position: jax.Array
    items: tuple[in_place.Items, in_place.Items] | None = None


class Sampling(NamedTuple):
    """temperature 0 is greedy; top_p keeps the smallest set of tokens with that much probability."""

    temperature: jax.Array | float = 0.0
    top_p: jax.Array | float = 1.0


def empty_tail(config: ModelConfig, base: Base, length: int) -> Stream:
    """Room for `length` tokens behind a base (rounded up to what a TPU reads without copying)."""
    lm = config.language
    shape = (lm.layers, lm.kv_heads, round_up(length, 16), lm.head_width)
    return Stream(*(jnp.zeros(shape, base.streams[0].k.dtype) for _ in "kv"))


Observe = Callable[[Any, jax.Array, jax.Array, jax.Array], Any]
"""(seen, rotated q [N, H, D], log-sum-exp [N, H], layer) → seen."""


def reader(
    kernel: Kernel, config: ModelConfig, base: Base, tail: Stream, slots: jax.Array
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """A function (q before rotation, tail, layer) → (out, log-sum-exp, rotated q) for tokens at tail `slots` [N]."""
    lm, count = config.language, len(slots)
    turn = lambda positions: tuple(t[..., None, :] for t in rotation(positions, lm.head_width, lm.rope_theta))
    own = turn(base.position + slots)
    if base.items is None:
        stops = jnp.concatenate([jnp.repeat(base.lengths[:, None], count, axis=1), slots[None] + 1])
        streams = (*base.streams, tail)
        reads = attention.prepare(kernel, jnp.zeros_like(stops), stops, heads=lm.heads, streams=streams)

        def read(q, tail, layer):
            q = rotate(q, *own)
            return *attention.attend(q, (*base.streams, tail), reads, layer=layer), q
    else:
        repeats = lm.heads // lm.kv_heads
        fine, coarse = base.items
        items = fine if count == 1 else coarse
        reads = in_place.prepare(kernel, items, jnp.zeros_like(slots), slots + 1, repeats=repeats)
        by_run = turn((base.position + slots)[None] - reads.shift[:, None])

        def read(q, tail, layer):
            own_q = rotate(q, *own)
            return *in_place.attend(rotate(q[None], *by_run), own_q, base.streams, tail, reads, layer=layer), own_q

    return read


def extend(
    params: Any, config: ModelConfig, base: Base, tail: Stream, filled: jax.Array, ids: jax.Array,
    *, observe: Observe | None = None, seen: Any = None, kernel: Kernel = REFERENCE,
) -> tuple[Stream, jax.Array, Any]:
    """Run tokens that see all of the base and, causally, the tail.

    Shapes: ids int32 [N], placed at tail slots filled … filled + N − 1. Returns the tail with their keys
    and values written, and the residual stream [N, E]. With `observe`, which looks at every layer's
    attention, only what it has `seen` is of interest: the last layer then stops at its attention.
    """
    lm, count = config.language, ids.shape[0]
    slots = filled + jnp.arange(count)
    cos, sin = (table[:, None] for table in rotation(base.position + slots, lm.head_width, lm.rope_theta))
    read = reader(kernel, config, base, tail, slots)

    def attend(q, k, v, state, layer):
        tail, seen = state
        tail = tail.write(rotate(k, cos, sin), v, layer, filled)
        out, lse, q = read(q, tail, layer)
        return out, (tail, observe(seen, q, lse, layer) if observe else seen)

    x = qwen2.embed(params["language"], ids)
    x, (tail, seen) = qwen2.run_layers(
        params["language"], lm, x, attend, (tail, seen), last_keys_only=observe is not None
    )
    return tail, x, seen


def choose(logits: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """Next token from fp32 logits [vocabulary]: greedy, or drawn by temperature and top-p."""
    temperature = jnp.asarray(sampling.temperature, jnp.float32)

    def draw(logits: jax.Array) -> jax.Array:
        scaled = logits / temperature
        ordered = jnp.sort(scaled, descending=True)
        probability = jax.nn.softmax(ordered)
        before = jnp.cumsum(probability) - probability
        least = jnp.min(jnp.where(before < sampling.top_p, ordered, jnp.inf))
        return jax.random.categorical(key, jnp.where(scaled >= least, scaled, -jnp.inf)).astype(jnp.int32)

    # A branch, not a selection: greedy answers need not sort the vocabulary.
    greedy = lambda logits: jnp.argmax(logits).astype(jnp.int32)
    return jax.lax.cond(temperature > 0, draw, greedy, logits)


class Generated(NamedTuple):
    """tokens int32 [max_new] (after a stop token: that token again), count int32 (stop token included);
    logits fp32 [max_new, vocabulary], question_logits [N, vocabulary]: only where asked."""

    tokens: jax.Array
    count: jax.Array
    logits: jax.Array | None
    question_logits: jax.Array | None


@partial(jax.jit, static_argnames=("config", "max_new", "keep_logits", "kernel"))
def generate(
    params: Any,
    config: ModelConfig,
    base: Base,
    ids: jax.Array,
    count: jax.Array,
    sampling: Sampling,
    key: jax.Array,
    *,
    max_new: int,
    keep_logits: bool = False,
    kernel: Kernel = REFERENCE,
) -> Generated:
    """Run a question over a base and decode up to `max_new` tokens.

    Shapes: ids int32 [N], of which the first `count` are real. The first new token comes from the
    question pass. After a stop token the remaining steps do no work.
    """
    to_logits = lambda x: qwen2.logits(params["language"], config.language, x)
    tail = empty_tail(config, base, ids.shape[0] + max_new)
    tail, x, _ = extend(params, config, base, tail, jnp.int32(0), ids, kernel=kernel)
    first_logits = to_logits(x[count - 1])
    stops = jnp.asarray(config.stop_tokens, jnp.int32)

    def step(carry, step_key):
        tail, filled, token = carry
        done = jnp.isin(token, stops)

        def go_on(tail):
            tail, x, _ = extend(params, config, base, tail, filled, token[None], kernel=kernel)
            logits = to_logits(x[0])
            return tail, logits, choose(logits, sampling, step_key)

        stay = lambda tail: (tail, jnp.zeros_like(first_logits), token)
        # Parity wants all steps whatever was said; otherwise a finished answer costs nothing more.
        tail, logits, following = go_on(tail) if keep_logits else jax.lax.cond(done, stay, go_on, tail)
        return (tail, filled + 1, following), (following, logits if keep_logits else None)

    keys = jax.random.split(key, max_new)
    first = choose(first_logits, sampling, keys[0])
    _, (later, later_logits) = jax.lax.scan(step, (tail, count, first), keys[1:])
    tokens = jnp.concatenate([first[None], later])
    stopped = jnp.isin(tokens, stops)
    length = jnp.where(stopped.any(), jnp.argmax(stopped) + 1, max_new)
    if not keep_logits:
        return Generated(tokens, length, None, None)
    return Generated(tokens, length, jnp.concatenate([first_logits[None], later_logits]), to_logits(x))
