"""Question pass and decoding: a `lax.scan` over new tokens that reads a cache and never changes it.

Questions run in batches; a single question is a batch of one. They read a view of the memory (`cache.views`): the dense
level, the sparse level, or a mixture of their own. Their own keys and values go to a *tail*, so asking cannot change a
memory. Weights are read once for all tokens of all questions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from pallas_kernels import kv_cache
from pallas_kernels.attention import REFERENCE, Kernel, KVCache
from pallas_kernels.decode import plan_reads
from vxl2_jax.buckets import round_up
from vxl2_jax.cache.views import KVCacheView
from vxl2_jax.config import LanguageConfig, ModelConfig
from vxl2_jax.models import qwen2
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.sampling import Sampling, sample
from vxl2_jax.sequence_parallel import merge_devices
from vxl2_jax.tensor_parallel import CACHE, SEQUENCE, PerDevice, program


def empty_tail(config: ModelConfig, view: KVCacheView, questions: int, length: int) -> KVCache:
    """A cache of zeros for `length` tokens of each question, one question after another: [L, K, questions · length, D] in
    the dtype of the view. `length` is rounded up to what a TPU reads without a copy."""
    lm, dtype = config.language, view.streams[0].dtype
    return kv_cache.zeros(lm.layers, lm.kv_heads, questions * kv_cache.aligned(length, dtype), lm.head_width, dtype)


def left_pad(
    ids: Int[Array | np.ndarray, "B N"], count: Int[Array | np.ndarray, " B"]
) -> tuple[Int[Array, "B N"], Int[Array, " B"]]:
    """Move the padding of right-padded questions, with `count` real tokens each, to the left.

    Returns (ids, the slot at which each question begins). All questions now end at the same slot, and so do answers.
    """
    begin = jnp.shape(ids)[1] - jnp.asarray(count, jnp.int32)
    return jax.vmap(jnp.roll)(ids, begin), begin


Observe = Callable[[Any, jax.Array, jax.Array, jax.Array], Any]
"""(state, rotated q [B, N, H, D], log-sum-exp [B, N, H], layer) → state."""

Read = Callable[[jax.Array, KVCache, jax.Array], tuple[jax.Array, jax.Array]]
"""(q [B, N, H, D] before rotation, tail, layer) → (out [B, N, H, D], log-sum-exp [B, N, H])."""


def reader(
    kernel: Kernel,
    config: ModelConfig,
    view: KVCacheView,
    tail: KVCache,
    begin: Int[Array | np.ndarray, " B"],
    slot: Int[ArrayLike, ""],
    count: int,
) -> Read:
    """How the tokens at slots slot … slot + count − 1 of each question's part of the tail read the view and the tail.

    This is where positions change: a segment of the cache keeps its keys, and its queries are rotated at
    `plan.positions`, their own positions minus the segment's shift.

    Only the shape of the tail is used. Slots before a question's `begin` (see `extend`) are padding: they read nothing,
    and their output is meaningless.
    """
    lm, questions = config.language, len(begin)
    slots = jnp.asarray(slot) + jnp.arange(count)
    start = jnp.broadcast_to(begin[:, None], (questions, count))
    end = jnp.maximum(slots + 1, start)
    part = jnp.arange(questions)[:, None] * (tail.k.shape[2] // questions)
    table = view.step_table if count == 1 else view.question_table
    shares = isinstance(table, PerDevice)  # of a sharded video
    if isinstance(table, PerDevice):
        table = table.own()
    calls = jax.tree.leaves(table)[0].shape[0]

    def by_call(a: jax.Array) -> jax.Array:
        return rearrange(a, "(c b) ... -> c b ...", c=calls)

    plans = plan_reads(
        kernel,
        table,
        by_call(start + part),
        by_call(end + part),
        heads=lm.heads,
        streams=(*view.streams, tail),
        reads_tail=jax.lax.axis_index(SEQUENCE) == 0 if shares else None,  # all devices have it
    )
    positions = by_call(_positions(view, begin, slots))
    rotations = _head_rotation(lm, jax.vmap(lambda plan, at: plan.positions(at))(plans, positions))

    def read(q: jax.Array, tail: KVCache, layer: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one_call(args: tuple) -> tuple[jax.Array, jax.Array]:
            q, plan, cos, sin = args
            return plan.attend(rotate(plan.rows(q), cos, sin), (*view.streams, tail), layer=layer)

        out, lse = jax.lax.map(one_call, (by_call(q), plans, *rotations))
        if shares:
            out, lse = merge_devices(out, lse)
            out = out.astype(q.dtype)
        return out.reshape(q.shape), lse.reshape(q.shape[:-1])

    return read


def _head_rotation(lm: LanguageConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine for heads at positions [...]: [..., 1, D / 2]."""
    cos, sin = rotation(positions, lm.head_width, lm.rope_theta)
    return cos[..., None, :], sin[..., None, :]


def _positions(view: KVCacheView, begin: jax.Array | np.ndarray, slots: jax.Array) -> jax.Array:
    """int32 [B, N]: positions of the tokens at slots [N] of every question's part of the tail."""
    return jnp.reshape(view.position, (-1, 1)) + slots - begin[:, None]


def extend(
    params: Any,
    config: ModelConfig,
    view: KVCacheView,
    tail: KVCache,
    begin: Int[Array | np.ndarray, " B"],
    slot: Int[ArrayLike, ""],
    ids: Int[Array | np.ndarray, "B N"],
    *,
    observe: Observe | None = None,
    state: Any = None,
    kernel: Kernel = REFERENCE,
) -> tuple[KVCache, Float[Array, "B N E"], Any]:
    """Run tokens that see the whole view and, causally, their own question's part of the tail.

    Args:
      ids: tokens, placed at slots slot … slot + N − 1 of each question's part of the tail.
      begin: the slot of each question's first token; slots before it are padding.
      observe: called with every layer's attention. The last layer then stops after it, so the returned residual stream
        is not the model's output.

    Returns:
      The tail with the keys and values of the tokens, the residual stream, and the state.
    """
    lm, count = config.language, ids.shape[1]
    own = _head_rotation(lm, _positions(view, begin, jnp.asarray(slot) + jnp.arange(count)))
    read = reader(kernel, config, view, tail, begin, slot, count)

    def attend(q, k, v, carry, layer):
        tail, state = carry
        tail = _write_tail(tail, rotate(k, *own), v, layer, slot)
        out, lse = read(q, tail, layer)
        return out, (tail, observe(state, rotate(q, *own), lse, layer) if observe else state)

    x = qwen2.embed(params["language"], lm, ids)
    x, (tail, state) = qwen2.run_layers(
        params["language"], lm, x, attend, (tail, state), last_keys_only=observe is not None
    )
    return tail, x, state


def _write_tail(tail: KVCache, k: jax.Array, v: jax.Array, layer: jax.Array, slot: ArrayLike) -> KVCache:
    """Write rows k, v [B, N, K, D] at `slot` of every question's part of the tail, in one layer."""

    def put(cache: jax.Array, rows: jax.Array) -> jax.Array:
        # Only one layer is reshaped: a view of the whole tail in another shape would make XLA copy it in every layer.
        one = jax.lax.dynamic_index_in_dim(cache, layer, keepdims=True)
        parts = rearrange(one, "l k (b t) d -> l k b t d", b=len(rows))
        rows = rearrange(rows, "b n k d -> 1 k b n d")
        parts = jax.lax.dynamic_update_slice(parts, rows, (0, 0, 0, slot, 0))
        return jax.lax.dynamic_update_slice(cache, parts.reshape(one.shape), (layer, 0, 0, 0))

    return jax.tree.map(put, tail, KVCache.of_rows(k, v, tail.dtype))


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes:
      tokens: int32 [B, max_new]. After its stop token, an answer repeats it.
      count: int32 [B], tokens of each answer, the stop token included.
      finite: bool [B], whether the logits of the first new token are finite.
      logits: fp32 [B, max_new, vocabulary], only on request.
      question_logits: fp32 [B, N, vocabulary] of the left-padded questions, only on request.
    """

    tokens: jax.Array
    count: jax.Array
    finite: jax.Array
    logits: jax.Array | None
    question_logits: jax.Array | None


class Decoding(NamedTuple):
    """The state of answers that are being decoded.

    Attributes:
      tail: the keys and values of the questions and of the tokens before the last.
      token: int32 [B], the last token of each answer.
      done: bool [B], whether the answer is complete. It is for a question without tokens, which fills up the batch.
      begin: int32 [B], the slot of each question's first token; see `left_pad`.
      slot: int32, of the last token in each question's part of the tail.
      finite: bool [B], whether the logits of the first new token are finite, or the question has no tokens.
    """

    tail: KVCache
    token: jax.Array
    done: jax.Array
    begin: jax.Array
    slot: jax.Array
    finite: jax.Array


STEPS_PER_PIECE = 4
"""Steps per call of `continue_decoding` when an answer is streamed: enough that calls cost little next to the steps."""


@program(static=("config", "max_new", "keep_logits", "kernel"), results=P())
def generate(
    params: Any,
    config: ModelConfig,
    view: KVCacheView,
    ids: Int[Array | np.ndarray, "B N"],
    count: Int[Array | np.ndarray, " B"],
    sampling: Sampling,
    key: Key[Array, ""],
    *,
    max_new: int,
    keep_logits: bool = False,
    kernel: Kernel = REFERENCE,
) -> Generated:
    """Run a batch of questions over a view and decode up to `max_new` tokens of each.

    The first new tokens come from the question pass. A finished question repeats its stop token; when all are finished,
    the remaining steps do no work.

    Args:
      ids: right-padded questions, of which the first `count` tokens are real. A question without tokens fills up the
        batch.
      keep_logits: also return the logits; then all steps are run.
    """
    keys = jax.random.split(key, max_new)
    state, x = _question_pass(params, config, view, ids, count, sampling, keys[0], max_new, kernel)
    _, (later, later_logits) = _decode(params, config, view, state, sampling, keys[1:], keep_logits, kernel)
    tokens = jnp.concatenate([state.token[None], later]).T
    stopped = _is_stop(config, tokens)
    produced = jnp.where(stopped.any(axis=1), jnp.argmax(stopped, axis=1) + 1, max_new)
    if later_logits is None:
        return Generated(tokens, produced, state.finite, None, None)
    first_logits = qwen2.logits(params["language"], config.language, x[:, -1])
    logits = jnp.swapaxes(jnp.concatenate([first_logits[None], later_logits]), 0, 1)
    return Generated(tokens, produced, state.finite, logits, qwen2.logits(params["language"], config.language, x))


_ON_MESH: Any = Decoding(*[cast(Any, CACHE), *[cast(Any, P())] * 5])


@program(static=("config", "max_new", "kernel"), results=(_ON_MESH, P()))
def begin_decoding(
    params: Any,
    config: ModelConfig,
    view: KVCacheView,
    ids: Int[Array | np.ndarray, "B N"],
    count: Int[Array | np.ndarray, " B"],
    sampling: Sampling,
    key: Key[Array, ""],
    *,
    max_new: int,
    kernel: Kernel = REFERENCE,
) -> tuple[Decoding, Key[Array, " steps"]]:
    """The part of `generate` up to the first new token: (the state, the keys of the steps that follow).

    Takes the arguments of `generate`. The number of steps is max_new − 1, rounded up to `STEPS_PER_PIECE`; there is room for all.
    """
    keys = jax.random.split(key, max_new)
    steps = round_up(max_new - 1, STEPS_PER_PIECE)
    state, _ = _question_pass(params, config, view, ids, count, sampling, keys[0], 1 + steps, kernel)
    return state, keys[jnp.minimum(1 + jnp.arange(steps), max_new - 1)]


@program(static=("config", "kernel"), donated=("state",), results=(_ON_MESH, P()))
def continue_decoding(
    params: Any,
    config: ModelConfig,
    view: KVCacheView,
    state: Decoding,
    sampling: Sampling,
    keys: Key[Array, " steps"],
    *,
    kernel: Kernel = REFERENCE,
) -> tuple[Decoding, Int[Array, "steps B"]]:
    """Decode one more token of each answer per key: (the new state, the tokens). The old state is donated: do not use it."""
    state, (tokens, _) = _decode(params, config, view, state, sampling, keys, False, kernel)
    return state, tokens


def _question_pass(
    params: Any,
    config: ModelConfig,
    view: KVCacheView,
    ids: jax.Array | np.ndarray,
    count: jax.Array | np.ndarray,
    sampling: Sampling,
    key: jax.Array,
    max_new: int,
    kernel: Kernel,
) -> tuple[Decoding, jax.Array]:
    """The state after the first new token, and the residual stream of the questions [B, N, E]."""
    questions, length = ids.shape
    ids, begin = left_pad(ids, count)
    tail = empty_tail(config, view, questions, length + max_new)
    tail, x, _ = extend(params, config, view, tail, begin, jnp.int32(0), ids, kernel=kernel)
    logits = qwen2.logits(params["language"], config.language, x[:, -1])
    token, unused = sample(logits, sampling, key), begin == length
    finite = jnp.isfinite(logits).all(axis=-1) | unused
    return Decoding(tail, token, _is_stop(config, token) | unused, begin, jnp.int32(length), finite), x


def _decode(
    params: Any,
    config: ModelConfig,
    view: KVCacheView,
    state: Decoding,
    sampling: Sampling,
    keys: jax.Array,
    keep_logits: bool,
    kernel: Kernel,
) -> tuple[Decoding, tuple[jax.Array, jax.Array | None]]:
    """One step per key: the last state, the tokens [steps, B] and, if they are kept, the logits [steps, B, vocabulary]."""

    def step(carry, now):
        (tail, token, done), (slot, key) = carry, now

        def advance(tail):
            tail, x, _ = extend(params, config, view, tail, state.begin, slot, token[:, None], kernel=kernel)
            logits = qwen2.logits(params["language"], config.language, x[:, 0])
            return tail, sample(logits, sampling, key), logits

        if keep_logits:
            tail, following, logits = advance(tail)
            return (tail, following, done), (following, logits)
        tail, following = jax.lax.cond(done.all(), lambda tail: (tail, token), lambda tail: advance(tail)[:2], tail)
        following = jnp.where(done, token, following)
        return (tail, following, done | _is_stop(config, following)), (following, None)

    steps = len(keys)
    carry, kept = jax.lax.scan(step, (state.tail, state.token, state.done), (state.slot + jnp.arange(steps), keys))
    return Decoding(*carry, state.begin, state.slot + steps, state.finite), kept


def _is_stop(config: ModelConfig, tokens: jax.Array) -> jax.Array:
    """Whether each token ends an answer."""
    return jnp.isin(tokens, jnp.asarray(config.stop_tokens, jnp.int32))
