"""Cross-entropy of answers about videos, with the modules, visibility rule and attention kernels of inference.

A whole video is processed at once, not in strides: its attention reads the keys that inference reads from the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt8

from pallas_kernels import attention
from pallas_kernels.attention import REFERENCE, Kernel, KVCache, gradient
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import qwen2, video_xl_2
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.parallel import DATA, MODEL
from vxl2_jax.training.collate import Batch
from vxl2_jax.training.settings import Stage, TrainingSettings

Params = Any
LOGIT_ROWS = 256
"""Rows of logits computed at a time: with 152,064 tokens in the vocabulary, all at once would not fit in memory."""


def loss(
    params: Params,
    config: ModelConfig,
    batch: Batch,
    *,
    kernel: Kernel = REFERENCE,
    remat: bool = True,
    train_vision: bool = True,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean cross-entropy over the predicted tokens.

    Args:
      kernel: attention of the language model, and of the vision tower unless that is trained.
      remat: recompute activations in the backward pass, per layer, group and block.
      mesh: devices to spread samples and heads over.

    Returns:
      The loss, and {"tokens": number of predicted tokens, "accuracy": fraction where the target has the highest logit}.
    """
    x = hidden(params, config, batch, kernel=kernel, remat=remat, train_vision=train_vision, mesh=mesh)
    rows = x[:, -batch.ids.shape[1] :]
    size = min(LOGIT_ROWS, rows.shape[1])
    padding = -rows.shape[1] % size
    rows = jnp.pad(rows, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(batch.targets, ((0, 0), (0, padding)), constant_values=-1)
    slices = rearrange(rows, "b (n r) e -> n b r e", r=size), rearrange(targets, "b (n r) -> n b r", r=size)

    def score(rows: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, predicted = qwen2.logits(params["language"], config.language, rows), targets >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
        return jnp.where(predicted, losses, 0).sum(), (predicted & (logits.argmax(-1) == targets)).sum()

    def skip(rows: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.float32(0), jnp.int32(0)

    def score_slice(rows_and_targets: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # Only the conversation, at the end of the global rows, has targets.
        return jax.lax.cond((rows_and_targets[1] >= 0).any(), jax.checkpoint(score), skip, *rows_and_targets)

    total, correct = (a.sum() for a in jax.lax.map(score_slice, slices))
    count = jnp.maximum((batch.targets >= 0).sum(), 1)
    return total / count, {"tokens": count.astype(jnp.float32), "accuracy": correct / count}


def stage_loss(
    config: ModelConfig,
    settings: TrainingSettings,
    stage: Stage,
    *,
    kernel: Kernel = REFERENCE,
    mesh: Mesh | None = None,
) -> Callable[[Params, Batch], tuple[jax.Array, dict[str, jax.Array]]]:
    """`loss` of (parameters, batch) as a stage of fine-tuning needs it."""
    train_vision = bool({"vision", "dts", "projector"} & set(stage.train))

    def compute(params: Params, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        return loss(params, config, batch, kernel=kernel, remat=settings.remat, train_vision=train_vision, mesh=mesh)

    return compute


def hidden(
    params: Params,
    config: ModelConfig,
    batch: Batch,
    *,
    kernel: Kernel = REFERENCE,
    remat: bool = True,
    train_vision: bool = True,
    mesh: Mesh | None = None,
) -> Float[Array, "B N E"]:
    """The residual stream after the last layer: visual rows, then global rows. Arguments as for `loss`."""
    language, lm = params["language"], config.language

    def by_sample(x: jax.Array) -> jax.Array:
        return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(DATA)))

    visual = visual_tokens(
        params,
        config,
        batch.frames,
        kernel=REFERENCE if train_vision else kernel,
        remat=remat and train_vision,
        mesh=mesh,
    )
    embedded = qwen2.embed(language, lm, batch.ids)
    x = by_sample(jnp.concatenate([visual.astype(embedded.dtype), embedded], axis=1))
    cos, sin = (t[..., None, :] for t in rotation(batch.positions, lm.head_width, lm.rope_theta))
    attend_batch = _sharded(partial(_attend, kernel, visual.shape[1]), mesh)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, state: Any, layer: Any) -> tuple[jax.Array, Any]:
        return by_sample(attend_batch(rotate(q, cos, sin), rotate(k, cos, sin), v, batch.k_start, batch.k_end)), state

    return qwen2.run_layers(language, lm, x, attend, remat=remat)[0]


def visual_tokens(
    params: Params,
    config: ModelConfig,
    frames: UInt8[Array | np.ndarray, "B F S S 3"],
    *,
    kernel: Kernel = REFERENCE,
    remat: bool = True,
    mesh: Mesh | None = None,
) -> Float[Array, "B N E"]:
    """Projected visual tokens, N = G·V, of F = 4·G frames. One group of every sample is encoded at a time."""

    def encode_group(params: Params, frames: jax.Array) -> jax.Array:
        flat = rearrange(frames, "b f y x c -> (b f) y x c")
        features = video_xl_2.frame_features(params, config, flat, kernel, remat)
        return video_xl_2.project(params, config, video_xl_2.group_maps(params, config, features))

    def encode(params: Params, frames: jax.Array | np.ndarray) -> jax.Array:
        encode_one = partial(jax.checkpoint(encode_group) if remat else encode_group, params)
        groups = rearrange(frames, "b (g f) y x c -> g b f y x c", f=config.frames_per_group)
        return rearrange(jax.lax.map(encode_one, groups), "g b v e -> b (g v) e")

    vision = {name: params[name] for name in ("vision", "dts", "projector")}
    if mesh is None:
        return encode(vision, frames)
    # Groups are independent: devices that split the heads of a sample split its groups here.
    groups = frames.shape[1] // config.frames_per_group
    by_group = P(DATA, MODEL if groups % mesh.shape[MODEL] == 0 else None)
    return jax.shard_map(encode, mesh=mesh, in_specs=(P(), by_group), out_specs=by_group, check_vma=False)(
        vision, frames
    )


def _attend(
    kernel: Kernel,
    visual: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    k_start: jax.Array | np.ndarray,
    k_end: jax.Array | np.ndarray,
) -> jax.Array:
    """Attention of a batch, one sample at a time. q [B, N, H, D]; k, v [B, N, K, D]; k_start, k_end [B, 2, N].

    The first `visual` rows are the visual stream. Returns [B, N, H, D].
    """
    halves = (slice(None, visual), slice(visual, None))  # separate calls per stream, as in pre-filling

    def attend_one(sample: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, k_start, k_end = sample
        streams = tuple(KVCache(*(jnp.swapaxes(a[half], 0, 1)[None] for a in (k, v))) for half in halves)
        plan = partial(attention.plan_attention, kernel, heads=q.shape[1], streams=streams)
        return jnp.concatenate(
            [gradient.attend(q[half], streams, plan(k_start[:, half], k_end[:, half])) for half in halves]
        )

    return jax.lax.map(attend_one, (q, k, v, k_start, k_end))


def _sharded(attend_batch: Callable[..., jax.Array], mesh: Mesh | None) -> Callable[..., jax.Array]:
    """The same, where each device computes its own samples and heads."""
    if mesh is None:
        return attend_batch
    heads, ranges = P(DATA, None, MODEL), P(DATA)
    return jax.shard_map(
        attend_batch, mesh=mesh, in_specs=(heads, heads, heads, ranges, ranges), out_specs=heads, check_vma=False
    )
