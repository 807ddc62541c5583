"""Stage 3: the language half on composed videos: answers, and attention that finds what it should."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.nano import training_compose
from experiments.nano.training_aims import ABSENT, Kind
from experiments.nano.training_compose import VISUAL
from experiments.nano.training_vision import NONE
from experiments.synthetic import questions, vocabulary
from vxl2_jax.config import LanguageConfig
from vxl2_jax.layout import Layout, PrefillRule, natural_mask
from vxl2_jax.models import qwen2, rope

Params = Any
STAMP = 1  # tokens of a timestamp
# (layer, head, kinds, aim): which head's attention is to find what a question's token looks for.
FINDERS = (
    (2, 0, (Kind.NAME, Kind.WHEN, Kind.COUNT), "aim"),
    (2, 1, (Kind.NUMBER,), "aim"),
    (3, 0, (Kind.COUNT,), "aim_second"),
    (4, 0, (Kind.COUNT,), "aim_third"),
    (3, 1, (Kind.EXISTS, Kind.FIRST), "aim"),
    (3, 2, (Kind.WHAT,), "aim"),
    (3, 3, (Kind.FOLLOWER,), "aim"),
)
# (layer, head, kinds): they read what they should in their own question.
READERS = (
    (1, 1, (Kind.EXISTS, Kind.FIRST, Kind.WHEN, Kind.COUNT, Kind.START)),
    (1, 2, (Kind.WHAT,)),
    (1, 3, (Kind.FOLLOWER,)),
    (2, 2, (Kind.LISTED,)),
)


def layout(groups: int) -> Layout:
    """Where a composed video's tokens lie."""
    return Layout(len(training_compose.video_ids(0, 0)), (STAMP,) * groups, VISUAL)


def _layout_of(batch: dict) -> Layout:
    return layout((batch["ids"].shape[1] - layout(0).length) // (VISUAL + STAMP))


def forward(
    params: Params, config: LanguageConfig, batch: dict, mask: jax.Array, mixed: dict | None = None
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Run videos and their questions. mask: bool [L, L], who sees whom inside the video.

    `mixed` gives every row of questions a mixed cache instead of the video as it is, see `training_mixed.draw`.
    Returns logits [R, N, vocabulary] of the questions' tokens and per layer the attention (video
    [B, H, L, L], questions [R, H, N, M + N], own tokens last).
    """
    ids, asked, part = batch["ids"], batch["asked"], batch["part"]
    length, rows = ids.shape[1], len(asked)
    visual = _layout_of(batch).visual_positions()
    video = params["embed"][ids].at[:, visual].set(batch["visual"].astype(jnp.float32))
    question = params["embed"][asked]
    base = jnp.full((rows,), length) if mixed is None else mixed["real"].sum(-1)

    def angles(at):
        return (t[..., None, :] for t in rope.rotation(at, config.head_width, config.rope_theta))

    def turn(a, at):
        return rope.rotate(a, *angles(at))

    places, at = base[:, None] + batch["place"], jnp.arange(length)
    among = (part[:, :, None] == part[:, None, :]) & jnp.tril(jnp.ones((asked.shape[1],) * 2, bool))
    scale, low = config.head_width**-0.5, -1e9
    seen: list[tuple[jax.Array, jax.Array]] = []

    def inside(q: jax.Array, k: jax.Array, v: jax.Array, _: Any) -> tuple[jax.Array, Any]:
        scores = jnp.einsum("bihd,bjhd->bhij", turn(q * scale, at), turn(k, at))
        weights = jax.nn.softmax(jnp.where(mask, scores, low), axis=-1)
        return jnp.einsum("bhij,bjhd->bihd", weights, v), (k, v, weights)

    def across(q: jax.Array, k: jax.Array, v: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
        keys, values = memory[:2]
        where, allowed = at, jnp.ones((rows, length), bool)
        if mixed is not None:
            keys, values = (_mix(a, mixed) for a in (keys, values))
            where, allowed = jnp.arange(keys.shape[1]), mixed["real"]
        keys = jnp.concatenate([turn(keys, where), turn(k, places)], 1)
        values = jnp.concatenate([values, v], 1)
        allowed = jnp.broadcast_to(allowed[:, None], (*among.shape[:2], allowed.shape[-1]))
        allowed = jnp.concatenate([allowed, among], -1)
        scores = jnp.einsum("bihd,bjhd->bhij", turn(q * scale, places), keys)
        weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, low), axis=-1)
        seen.append((memory[2], weights))
        return jnp.einsum("bhij,bjhd->bihd", weights, values), None

    module = qwen2.DecoderLayer(config)
    for layer in range(config.layers):
        own = {"params": jax.tree.map(lambda a, i=layer: a[i], params["layers"])}
        video, memory = module.apply(own, video, inside, None, layer == config.layers - 1)
        question, _ = module.apply(own, question, across, memory)
    return qwen2.logits(params, config, question), seen


def _mix(a: jax.Array, mixed: dict) -> jax.Array:
    """Keys or values of videos [B, L, H, D] → those of every row's mixed cache [R, M, H, D]."""
    pooled = jnp.einsum("sl,blhd->bshd", mixed["pool"], a)
    both = jnp.concatenate([a, pooled], 1)
    return both.reshape(-1, *both.shape[2:])[mixed["video"][:, None] * both.shape[1] + mixed["index"]]


def _miss(weights: jax.Array, wanted: jax.Array, counts: jax.Array) -> jax.Array:
    """Mean of −log of the attention mass on wanted keys, over the queries that count."""
    mass = (weights * wanted).sum(-1)
    counts = jnp.broadcast_to(counts, mass.shape)
    each = -jnp.log(mass + 1e-3) * counts
    return each.sum() / jnp.maximum(counts.sum(), 1)


def video_losses(batch: dict, mask: jax.Array, seen: list) -> dict[str, jax.Array]:
    """How far visual tokens' attention is from finding what it should, by name."""
    length, lay = batch["ids"].shape[1], _layout_of(batch)
    at, groups = lay.visual_positions(), np.repeat(np.arange(lay.groups), VISUAL)
    visible = mask[np.ix_(at, at)]

    def over_video(found: jax.Array) -> jax.Array:
        """Visual tokens wanted [B, G·V, G·V]; where there are none, the prefix's first token."""
        wanted = jnp.zeros((*found.shape[:2], length), bool).at[:, :, at].set(found)
        return wanted.at[:, :, 0].set(~found.any(-1))

    names, before = batch["seen"], batch["before"]
    shown = (names != NONE).astype(jnp.float32)
    own = np.zeros((len(at), length), bool)
    own[np.arange(len(at)), lay.timestamp_ends[groups] + groups * VISUAL - 1] = True
    same = (names[:, :, None] == names[:, None, :]) & (groups[:, None] > groups) & visible
    follows = (before[:, :, None] == names[:, None, :]) & (before[:, :, None] != NONE) & visible
    return {
        "stamp": _miss(seen[0][0][:, 0, at], own, jnp.ones(len(at))),
        "seen": _miss(seen[1][0][:, 0, at], over_video(same), shown),
        "previous": _miss(seen[1][0][:, 3, at], over_video(follows), shown),
    }


def question_losses(batch: dict, seen: list, mixed: dict | None = None) -> dict[str, jax.Array]:
    """How far questions' tokens' attention is from finding what it should, by head."""
    length, lay = batch["ids"].shape[1], _layout_of(batch)
    at, groups = lay.visual_positions(), np.repeat(np.arange(lay.groups), VISUAL)
    kind, count = batch["kind"], batch["kind"].shape[-1]
    names = batch["seen"] if mixed is None else batch["seen"][mixed["video"]]
    named = names[:, None] == batch["aim_name"][..., None]

    def over_memory(aim: jax.Array) -> jax.Array:
        """Keys wanted, video and own question [R, N, M + N]: the visual tokens of the groups aimed at that show the
        name, all of those groups where none does, the prefix's first token where the name is absent."""
        member = (aim[..., :1] <= groups) & (groups <= aim[..., 1:])
        showing = member & named
        showing = jnp.where(showing.any(-1, keepdims=True), showing, member)
        wanted = jnp.zeros((*kind.shape, length), bool).at[..., at].set(showing)
        wanted = wanted.at[..., 0].set(aim[..., 0] == ABSENT)
        if mixed is not None:
            pooled = jnp.einsum("rnl,sl->rns", wanted.astype(jnp.float32), mixed["pool"]) > 0
            both = jnp.concatenate([wanted, pooled], -1)
            wanted = jnp.take_along_axis(both, mixed["index"][:, None], -1) & mixed["real"][:, None]
        return jnp.concatenate([wanted, jnp.zeros((*kind.shape, count), bool)], -1)

    losses = {}

    def is_kind(kinds):
        return jnp.isin(kind, np.array(kinds)).astype(jnp.float32)

    for layer, head, kinds, aim in FINDERS:
        counts = is_kind(kinds) * (batch[aim][..., 0] >= ABSENT)
        losses[f"find {layer}.{head}"] = _miss(seen[layer][1][:, head], over_memory(batch[aim]), counts)
    part = batch["part"]
    own = (part[:, :, None] == part[:, None]) & (batch["place"][:, None, :, None] == batch["look"][:, :, None]).any(-1)
    for layer, head, kinds in READERS:
        weights = seen[layer][1][:, head, :, -count:]
        losses[f"read {layer}.{head}"] = _miss(weights, own, is_kind(kinds))
    return losses


def loss(
    params: Params, config: LanguageConfig, batch: dict, mask: jax.Array, help: jax.Array, mixed: dict | None = None
) -> tuple[jax.Array, dict]:
    """Cross-entropy of answers plus `help` times the attention losses; by type the share of questions all of whose
    deciding tokens are right, each given the true ones before it.

    Rows of a mixed cache with answered 0 count only for attention.
    """
    scores, seen = forward(params, config, batch, mask, mixed)
    answer, decides = batch["answer"], _decides(batch)
    counts = (answer >= 0).astype(jnp.float32)
    if mixed is not None:
        counts = counts * mixed["answered"][:, None]
    each = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(answer, 0)) * counts
    # The word that decides (a name, a number, yes or no) weighs more than articles and ends.
    weight = counts * jnp.where(decides, 1.0, 0.3)
    answers = (each * weight).sum() / jnp.maximum(weight.sum(), 1)
    losses = {**video_losses(batch, mask, seen), **question_losses(batch, seen, mixed)}
    by_type = _tally(batch, scores.argmax(-1) == answer, (counts > 0) & decides)
    shares = {kind: right / jnp.maximum(asked, 1) for kind, (right, asked) in by_type.items()}
    return answers + help * sum(losses.values()), {"answers": answers, **losses, **shares}


def right_by_type(
    params: Params, config: LanguageConfig, batch: dict, mask: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """By type: how many questions have all their deciding tokens right, each given the true ones before it, of how many
    that were asked."""
    scores, _ = forward(params, config, batch, mask)
    return _tally(batch, scores.argmax(-1) == batch["answer"], (batch["answer"] >= 0) & _decides(batch))


def _tally(batch: dict, right: jax.Array, counted: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """By type: questions without a wrong token among those that count, and questions."""
    rows, length = right.shape
    question = jnp.arange(rows)[:, None] * length + jnp.maximum(batch["part"], 0)

    def total(hit):
        return jnp.zeros(rows * length).at[question].add(hit.astype(jnp.float32))

    wrong, asked = total(counted & ~right), total(counted)
    kind = jnp.zeros(rows * length, jnp.int32).at[question].max(jnp.where(counted, batch["type"], 0))
    found = {}
    for i, name in enumerate(questions.TYPES):
        here = (asked > 0) & (kind == i)
        found[name] = ((wrong == 0) & here).sum(), here.sum()
    return found


def _decides(batch: dict) -> jax.Array:
    """bool [R, N]: whether the next token decides the answer."""
    order = (batch["type"] == questions.TYPES.index("order")) * 1
    return jnp.asarray(_deciding())[order, jnp.maximum(batch["answer"], 0)]


def _deciding() -> np.ndarray:
    """bool [2, vocabulary]: the words that decide an answer; row 1: where ends and commas decide, too."""
    decide = [*vocabulary.name_ids()[:-1], *vocabulary.number_ids(), *vocabulary.encode("yes no once twice three")]
    also = [*vocabulary.encode(","), vocabulary.SPECIAL.index("<|im_end|>")]
    every = np.arange(len(vocabulary.words()))
    return np.stack([np.isin(every, decide), np.isin(every, decide + also)])


def video_mask(groups: int, rule: PrefillRule) -> np.ndarray:
    """bool [L, L] over prefix and video."""
    return natural_mask(layout(groups), rule)
