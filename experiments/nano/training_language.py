"""Stage 3: the language half on composed videos: answers, and attention that finds what it should."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nano import training_compose, vocabulary
from nano.training_compose import EXISTS, FIRST, NAME, NUMBER, WHAT, WHEN
from nano.training_vision import NONE
from vxl2_jax.config import LanguageConfig
from vxl2_jax.layout import Layout, Rule, natural_mask
from vxl2_jax.models import qwen2, rope

Params = Any
VISUAL, STAMP = 9, 5  # tokens per group
# (layer, head, kinds): which head's attention is to find what a question's token looks for.
FINDERS = ((2, 0, (NAME,)), (2, 1, (NUMBER,)), (3, 0, (WHEN,)), (3, 1, (EXISTS, FIRST)), (3, 2, (WHAT,)))
# (layer, head, kinds, what): an answer's tokens find these tokens of their own question.
READERS = ((1, 1, (EXISTS, FIRST, WHEN), NAME), (1, 2, (WHAT,), NUMBER))


def layout(groups: int) -> Layout:
    """Where a composed video's tokens lie."""
    prefix = len(training_compose.video_ids(0, 0))
    return Layout(prefix, (STAMP,) * groups, VISUAL)


def forward(
    params: Params, config: LanguageConfig, batch: dict, mask: jax.Array, mixed: dict | None = None
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Run videos and their questions. mask: bool [L, L], who sees whom inside the video.

    `mixed` makes questions see a mixed cache instead of the video as it is: "mix" [B, M, L], how its
    entries are means of the video's keys (before rotation) and values; "real" bool [B, M]; "position"
    int32 [B, M]; "base" int32 [B], where questions start.
    Returns logits [B, N, vocabulary] of the questions' tokens and per layer the attention (video
    [B, H, L, L], questions [B, H, N, M + N], own tokens last).
    """
    ids, asked, part = batch["ids"], batch["asked"], batch["part"]
    size, length = ids.shape
    lay = layout((length - layout(0).length) // (VISUAL + STAMP))
    video = params["embed"][ids].at[:, lay.visual_positions()].set(batch["visual"].astype(jnp.float32))
    question = params["embed"][asked]
    base = jnp.full((size,), length) if mixed is None else mixed["base"]
    turn = lambda a, at: rope.rotate(a, *(t[..., None, :] for t in rope.rotation(at, config.head_width, config.rope_theta)))
    places, at = base[:, None] + batch["place"], jnp.arange(length)
    among = (part[:, :, None] == part[:, None, :]) & jnp.tril(jnp.ones((asked.shape[1],) * 2, bool))
    scale, low = config.head_width**-0.5, -1e9
    seen: list[tuple[jax.Array, jax.Array]] = []

    def inside(q: jax.Array, k: jax.Array, v: jax.Array, _: Any) -> tuple[jax.Array, Any]:
        scores = jnp.einsum("bihd,bjhd->bhij", turn(q * scale, at), turn(k, at))
        weights = jax.nn.softmax(jnp.where(mask, scores, low), axis=-1)
        return jnp.einsum("bhij,bjhd->bihd", weights, v), (k, v, weights)

    def across(q: jax.Array, k: jax.Array, v: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
        keys, values, where = *memory[:2], at
        allowed = jnp.ones((1, 1, length), bool)
        if mixed is not None:
            keys, values = (jnp.einsum("bml,blhd->bmhd", mixed["mix"], a) for a in (keys, values))
            where, allowed = mixed["position"], mixed["real"][:, None]
        keys = jnp.concatenate([turn(keys, where), turn(k, places)], 1)
        values = jnp.concatenate([values, v], 1)
        allowed = jnp.concatenate([jnp.broadcast_to(allowed, (size, *among.shape[1:2], allowed.shape[-1])), among], -1)
        scores = jnp.einsum("bihd,bjhd->bhij", turn(q * scale, places), keys)
        weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, low), axis=-1)
        seen.append((memory[2], weights))
        return jnp.einsum("bhij,bjhd->bihd", weights, values), None

    module = qwen2.DecoderLayer(config)
    for layer in range(config.layers):
        own = {"params": jax.tree.map(lambda a: a[layer], params["layers"])}
        video, memory = module.apply(own, video, inside, None, layer == config.layers - 1)
        question, _ = module.apply(own, question, across, memory)
    return qwen2.logits(params, config, question), seen


def _miss(weights: jax.Array, wanted: jax.Array, counts: jax.Array) -> jax.Array:
    """Mean of −log of the attention mass on wanted keys, over the queries that count."""
    mass = (weights * wanted).sum(-1)
    counts = jnp.broadcast_to(counts, mass.shape)
    each = -jnp.log(mass + 1e-3) * counts
    return each.sum() / jnp.maximum(counts.sum(), 1)


def attention_losses(batch: dict, mask: jax.Array, seen: list, mixed: dict | None = None) -> dict[str, jax.Array]:
    """How far the heads' attention is from finding what it should, by name."""
    length, part = batch["ids"].shape[1], batch["part"]
    lay = layout((length - layout(0).length) // (VISUAL + STAMP))
    at, groups = lay.visual_positions(), np.repeat(np.arange(lay.groups), VISUAL)
    losses = {}

    # Layer 0: the second token of a timestamp is its number.
    numbers = lay.prefix + np.arange(lay.groups) * (VISUAL + STAMP) + 1
    wanted = np.zeros((len(at), length), bool)
    wanted[np.arange(len(at)), numbers[groups]] = True
    losses["stamp"] = _miss(seen[0][0][:, 0, at], wanted, jnp.ones(len(at)))

    # Layer 1: the same picture in earlier groups, else the prefix's first token.
    names = batch["seen"]
    earlier = (names[:, :, None] == names[:, None, :]) & (groups[:, None] > groups) & mask[np.ix_(at, at)]
    wanted = jnp.zeros((len(names), len(at), length), bool).at[:, :, at].set(earlier)
    wanted = wanted.at[:, :, 0].set(~earlier.any(-1))
    losses["seen"] = _miss(seen[1][0][:, 0, at], wanted, (names != NONE).astype(jnp.float32))

    # A question's token: the visual tokens of the group it aims at that show the name it aims at.
    kind, name, group = batch["kind"], batch["aim_name"], batch["aim_group"]
    member = group[..., None] == groups
    showing = member & (names[:, None] == name[..., None])
    showing = jnp.where(showing.any(-1, keepdims=True), showing, member)
    wanted = jnp.zeros((*kind.shape, length), bool).at[..., at].set(showing)
    wanted = wanted.at[..., 0].set(group < 0)
    if mixed is not None:
        wanted = jnp.einsum("bnl,bml->bnm", wanted.astype(jnp.float32), mixed["mix"]) > 0
    wanted = jnp.concatenate([wanted, jnp.zeros((*kind.shape, kind.shape[-1]), bool)], -1)
    is_kind = lambda kinds: jnp.isin(kind, np.array(kinds)).astype(jnp.float32)
    for layer, head, kinds in FINDERS:
        losses[f"find {layer}.{head}"] = _miss(seen[layer][1][:, head], wanted, is_kind(kinds))
    for layer, head, kinds, what in READERS:
        own = (kind == what)[:, None] & (part[:, :, None] == part[:, None])
        own = jnp.concatenate([jnp.zeros((*kind.shape, wanted.shape[-1] - kind.shape[-1]), bool), own], -1)
        losses[f"read {layer}.{head}"] = _miss(seen[layer][1][:, head], own, is_kind(kinds))
    return losses


def loss(
    params: Params, config: LanguageConfig, batch: dict, mask: jax.Array, help: jax.Array, mixed: dict | None = None
) -> tuple[jax.Array, dict]:
    """Cross-entropy of answers plus `help` times the attention losses; accuracies by type."""
    scores, seen = forward(params, config, batch, mask, mixed)
    answer = batch["answer"]
    counts = (answer >= 0).astype(jnp.float32)
    each = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(answer, 0)) * counts
    # The word that decides (a name, a number, yes or no) weighs more than articles and ends.
    telling = jnp.asarray(_telling())[jnp.maximum(answer, 0)]
    weight = counts * jnp.where(telling, 1.0, 0.3)
    answers = (each * weight).sum() / weight.sum()
    losses = attention_losses(batch, mask, seen, mixed)
    right, counted = scores.argmax(-1) == answer, (answer >= 0) & telling
    measures = {"answers": answers, **losses}
    for i, kind in enumerate(("exists", "first", "when", "what")):
        here = counted & (batch["type"] == i)
        measures[kind] = (right & here).sum() / jnp.maximum(here.sum(), 1)
    return answers + help * sum(losses.values()), measures


def _telling() -> np.ndarray:
    """bool [vocabulary]: the words that decide an answer."""
    decide = {*vocabulary.name_ids()[:-1], *vocabulary.number_ids(), *vocabulary.encode("yes no")}
    return np.isin(np.arange(len(vocabulary.words())), list(decide))


def video_mask(groups: int, rule: Rule) -> np.ndarray:
    """bool [L, L] over prefix and video."""
    return natural_mask(layout(groups), rule)
