"""Cross-entropy of answers about watched videos, by the modules, the rule and the attention that inference uses.

A video goes through at once, not by strides: what the strides' cache carries is what the attention reads here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import attention
from pallas_kernels.attention import REFERENCE, Kernel, KVCache, gradient
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import qwen2, video_xl_2
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.parallel import DATA, MODEL
from vxl2_jax.training.collate import Batch

Params = Any
LOGIT_ROWS = 256  # rows of logits that stand in memory at once: a vocabulary of 152,064 is wide


def loss(
    params: Params,
    config: ModelConfig,
    batch: Batch,
    *,
    kernel: Kernel = REFERENCE,
    remat: bool = True,
    vision_learns: bool = True,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy over the tokens to be predicted, and {"tokens": how many, "right": share that is most likely}.

    `kernel` does the language half's attention, and the vision tower's where that does not learn. `remat`: a gradient
    makes activations again, layer by layer, group by group and block by block. `mesh` spreads examples and heads over its devices.
    """
    x = hidden(params, config, batch, kernel=kernel, remat=remat, vision_learns=vision_learns, mesh=mesh)
    rows = x[:, -batch.ids.shape[1] :]
    size = min(LOGIT_ROWS, rows.shape[1])
    fill = -rows.shape[1] % size
    rows = jnp.pad(rows, ((0, 0), (0, fill), (0, 0)))
    targets = jnp.pad(batch.targets, ((0, 0), (0, fill)), constant_values=-1)
    parts = rearrange(rows, "b (n r) e -> n b r e", r=size), rearrange(targets, "b (n r) -> n b r", r=size)

    def scored(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows, wanted = part
        logits, counts = qwen2.logits(params["language"], config.language, rows), wanted >= 0
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(wanted, 0))
        return jnp.where(counts, each, 0).sum(), (counts & (logits.argmax(-1) == wanted)).sum()

    # Only the end of the global rows, the conversation, has targets.
    def nothing(_):
        return (jnp.float32(0), jnp.int32(0))

    def some(part):
        return jax.lax.cond((part[1] >= 0).any(), jax.checkpoint(scored), nothing, part)

    summed, right = (a.sum() for a in jax.lax.map(some, parts))
    count = jnp.maximum((batch.targets >= 0).sum(), 1)
    return summed / count, {"tokens": count.astype(jnp.float32), "right": right / count}


def hidden(
    params: Params,
    config: ModelConfig,
    batch: Batch,
    *,
    kernel: Kernel = REFERENCE,
    remat: bool = True,
    vision_learns: bool = True,
    mesh: Mesh | None = None,
) -> jax.Array:
    """The residual stream after the last layer [B, G·V + R, E]: visual rows, then global ones."""
    language, lm = params["language"], config.language

    def at_hand(x):
        return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(DATA)))

    visual = visual_tokens(
        params,
        config,
        batch.frames,
        kernel=REFERENCE if vision_learns else kernel,
        remat=remat and vision_learns,
        mesh=mesh,
    )
    embedded = qwen2.embed(language, batch.ids)
    x = at_hand(jnp.concatenate([visual.astype(embedded.dtype), embedded], axis=1))
    cos, sin = (t[..., None, :] for t in rotation(batch.positions, lm.head_width, lm.rope_theta))
    look = _spread(partial(_attend, kernel, visual.shape[1]), mesh)

    def attend(q, k, v, state, layer):
        return at_hand(look(rotate(q, cos, sin), rotate(k, cos, sin), v, batch.k_start, batch.k_end)), state

    return qwen2.run_layers(language, lm, x, attend, remat=remat)[0]


def visual_tokens(
    params: Params,
    config: ModelConfig,
    frames: jax.Array,
    *,
    kernel: Kernel = REFERENCE,
    remat: bool = True,
    mesh: Mesh | None = None,
) -> jax.Array:
    """uint8 frames [B, 4·G, S, S, 3] → [B, G·V, E], a group of every example at a time."""

    def encode(params: Params, part: jax.Array) -> jax.Array:
        flat = rearrange(part, "b f y x c -> (b f) y x c")
        features = video_xl_2.frame_features(params, config, flat, kernel, remat)
        return video_xl_2.project(params, config, video_xl_2.group_maps(params, config, features))

    def encode_all(params: Params, frames: jax.Array) -> jax.Array:
        each = partial(jax.checkpoint(encode) if remat else encode, params)
        parts = rearrange(frames, "b (g f) y x c -> g b f y x c", f=config.frames_per_group)
        return rearrange(jax.lax.map(each, parts), "g b v e -> b (g v) e")

    halves = {name: params[name] for name in ("vision", "dts", "projector")}
    if mesh is None:
        return encode_all(halves, frames)
    # Groups do not see each other: the devices that share an example's heads share its groups out here.
    groups = frames.shape[1] // config.frames_per_group
    by_group = P(DATA, MODEL if groups % mesh.shape[MODEL] == 0 else None)
    return jax.shard_map(encode_all, mesh=mesh, in_specs=(P(), by_group), out_specs=by_group, check_vma=False)(
        halves, frames
    )


def _attend(
    kernel: Kernel, visual: int, q: jax.Array, k: jax.Array, v: jax.Array, k_start: jax.Array, k_end: jax.Array
) -> jax.Array:
    """Attention of a batch, example after example. q [B, N, H, D]; k, v [B, N, K, D] → [B, N, H, D]."""
    halves = (slice(None, visual), slice(visual, None))  # as in pre-filling, visual and global rows go apart

    def one(of: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, k_start, k_end = of
        streams = tuple(KVCache(*(jnp.swapaxes(a[half], 0, 1)[None] for a in (k, v))) for half in halves)
        ready = partial(attention.plan_attention, kernel, heads=q.shape[1], streams=streams)
        out = [gradient.attend(q[half], streams, ready(k_start[:, half], k_end[:, half])) for half in halves]
        return jnp.concatenate(out)

    return jax.lax.map(one, (q, k, v, k_start, k_end))


def _spread(look: Callable[..., jax.Array], mesh: Mesh | None) -> Callable[..., jax.Array]:
    """The same on every device for its own examples and heads."""
    if mesh is None:
        return look
    heads, ranges = P(DATA, None, MODEL), P(DATA)
    return jax.shard_map(
        look, mesh=mesh, in_specs=(heads, heads, heads, ranges, ranges), out_specs=heads, check_vma=False
    )
