"""The language half: batches of composed videos with questions, the loss on answers and on attention, the check."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.nano import composed, mixed_caches
from experiments.nano.attention_targets import ABSENT, FINDERS, READERS, UNUSED, question_row
from experiments.nano.composed import VISUAL, TokenBank, layout
from experiments.nano.frames import FRAMES, NOTHING
from experiments.synthetic import questions, vocabulary
from vxl2_jax.config import LanguageConfig
from vxl2_jax.layout import PrefillRule, natural_mask
from vxl2_jax.models import qwen2, rope

Params = Any
LENGTHS = (8, 12, 16, 32, 64, 128)  # groups of a video; few, because each is compiled
EARLY = (0.5, 0.3, 0.2, 0, 0, 0)  # frequencies of the lengths at the first step
LATER = (0.1, 0.15, 0.25, 0.22, 0.22, 0.06)  # from step GROWN on
GROWN = 500
MIXED = (16, 32)  # groups of videos that are asked through bi-level caches
BILEVEL = 0.2  # fraction of such steps
RENDERED = 0.2  # fraction of videos that are whole clips of the bank, if any is that long
HELP = (0.5, 0.1, 3000)  # weight of the losses on attention: at first, at last, reached at this step
QUESTIONS = 14  # per video
TYPES = (*questions.TYPES, "order", "count", "first", "between")  # in turn: harder types are asked more often
ROW, PACKED = 36, 14 * QUESTIONS  # tokens of a row with one question, and with all of a video's
CHECKED, CHECKS = (12, 32, 64), 6  # groups of the videos that are checked, and batches of each
PADDING = {"part": -1, "answer": -1, "read": -1, "find": UNUSED}  # elsewhere 0


def batch(bank: TokenBank, step: int) -> dict[str, np.ndarray]:
    """The batch of a step: short videos first, long ones more and more."""
    rng = np.random.default_rng((0, 5, step))
    early = max(0.0, 1 - step / GROWN)
    lengths = np.array(LATER) * (1 - early) + np.array(EARLY) * early
    mixed = bool(rng.random() < BILEVEL * (1 - early))
    groups = int(rng.choice(MIXED)) if mixed else int(rng.choice(LENGTHS, p=lengths))
    made = draw(bank, rng, groups, draw_rule(rng, groups), mixed, RENDERED, 0.5, TYPES)
    noise = rng.uniform(0, 0.04) * rng.standard_normal(made["visual"].shape, np.float32)
    first, last, steps = HELP
    help_weight = np.float32(max(last, first * (1 - step / steps)))
    return made | {"visual": (made["visual"] + noise).astype(np.float16), "help": help_weight}


def draw_rule(rng: np.random.Generator, groups: int) -> PrefillRule:
    """Dense, the usual rule, or one that hides more; long videos are seldom seen whole."""
    kind = rng.random()
    if kind < (0.45 if groups <= 16 else 0.2):
        return PrefillRule(4, None)
    if kind < 0.75:
        return PrefillRule(4, 3)
    return PrefillRule(int(rng.integers(2, 5)), int(rng.integers(2, 4)))


def draw(
    bank: TokenBank,
    rng: np.random.Generator,
    groups: int,
    rule: PrefillRule,
    mixed: bool,
    rendered: float,
    moved: float,
    types: Sequence[str] = questions.TYPES,
) -> dict[str, np.ndarray]:
    """B videos and R rows of N tokens of questions about them, about as much in all whatever the length.

    All questions about a video share a row and see the whole video; with `mixed` every question has its own row and
    bi-level cache. `moved` is the fraction of videos that start at a random second instead of 0.

    Shapes: ids int32 [B, L]; visual float16 [B, G·9, E]; seen, before int32 [B, G·9], see `composed.Video`; mask bool
    [L, L]; what `question_row` returns, int32 [R, N, ...]; part int32 [R, N], which question of the row, −1 none; video
    int32 [R]; the fields of `mixed_caches.Visible`.
    """
    videos, lines = defaultdict(list), []
    for number in range(2 if mixed else max(1, 80 // groups)):
        video = composed.compose(bank, rng, groups, rendered)
        offset = int(rng.integers(vocabulary.NUMBERS - FRAMES * groups)) if rng.random() < moved else 0
        asked = questions.questions(rng, video.clip, QUESTIONS, types, offset)
        videos["ids"].append(composed.video_ids(groups, offset))
        for name in ("tokens", "seen", "before"):
            videos[name].append(getattr(video, name))
        lines += [(number, question, question_row(video.clip, question, offset)) for question in asked]
    if mixed:
        rows = [row([line], ROW) for _, _, line in lines]
        video = [number for number, _, _ in lines]
        visible, answered = mixed_caches.draw(rng, [question for _, question, _ in lines], groups)
        for one, wanted in zip(rows, answered, strict=True):
            one["answer"] = np.where(wanted, one["answer"], -1)
    else:
        video = list(range(len(videos["ids"])))
        rows = [row([line for number, _, line in lines if number == v], PACKED) for v in video]
        visible = mixed_caches.whole(groups, len(rows))
    return {
        "ids": np.array(videos["ids"], np.int32),
        "visual": np.stack(videos["tokens"]),
        "seen": np.stack(videos["seen"]).astype(np.int32),
        "before": np.stack(videos["before"]).astype(np.int32),
        "mask": natural_mask(layout(groups), rule),
        **{name: np.stack([one[name] for one in rows]).astype(np.int32) for name in rows[0]},
        "video": np.array(video, np.int32),
        **visible._asdict(),
    }


def row(lines: list[dict[str, np.ndarray]], length: int) -> dict[str, np.ndarray]:
    """Questions one after another, cut or padded to `length` tokens."""
    lines = [line | {"part": np.full(len(line["asked"]), part)} for part, line in enumerate(lines)]
    joined = {name: np.concatenate([line[name] for line in lines])[:length] for name in lines[0]}
    return {
        name: np.pad(
            array,
            [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1),
            constant_values=PADDING.get(name, 0),
        )
        for name, array in joined.items()
    }


def forward(params: Params, config: LanguageConfig, batch: dict[str, Any]) -> tuple[jax.Array, list]:
    """Videos, then the questions about them.

    Returns logits [R, N, vocabulary] and per layer the attention weights of videos [B, H, L, L] and of questions
    [R, H, N, L + S + N]: prefix and video, pooled tokens, the row itself.
    """
    length, part = batch["ids"].shape[1], batch["part"]
    groups = (length - layout(0).length) // (VISUAL + 1)
    x = qwen2.embed(params, config, batch["ids"]).at[:, layout(groups).visual_positions()].set(batch["visual"])
    asked = qwen2.embed(params, config, batch["asked"])
    at, places = jnp.arange(length)[None], batch["base"][:, None] + batch["place"]
    key_places = jnp.concatenate([batch["positions"], places], 1)
    among = (part[:, :, None] == part[:, None]) & np.tri(part.shape[1], dtype=bool)
    cached = jnp.broadcast_to(batch["allowed"][:, None], (*part.shape, batch["allowed"].shape[1]))
    allowed = jnp.concatenate([cached, among], -1)[:, None]
    found = []

    def turn(a: jax.Array, where: jax.Array) -> jax.Array:
        return rope.rotate(a, *(t[..., None, :] for t in rope.rotation(where, config.head_width, config.rope_theta)))

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, q_at: jax.Array, k_at: jax.Array) -> tuple:
        scores = jnp.einsum("bihd,bjhd->bhij", turn(q, q_at), turn(k, k_at)) * config.head_width**-0.5
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
        return jnp.einsum("bhij,bjhd->bihd", weights, v), weights

    def attend_video(q: jax.Array, k: jax.Array, v: jax.Array, _: Any) -> tuple:
        out, weights = attend(q, k, v, batch["mask"], at, at)
        return out, (k, v, weights)

    def attend_question(q: jax.Array, k: jax.Array, v: jax.Array, memory: tuple) -> tuple:
        def with_video(cached: jax.Array, own: jax.Array) -> jax.Array:
            both = jnp.concatenate([cached, jnp.einsum("sl,blhd->bshd", batch["pool"], cached)], 1)
            return jnp.concatenate([both[batch["video"]], own], 1)

        out, weights = attend(q, with_video(memory[0], k), with_video(memory[1], v), allowed, places, key_places)
        found.append((memory[2], weights))
        return out, None

    module = qwen2.DecoderLayer(config)
    for layer in range(config.layers):
        own = {"params": jax.tree.map(lambda a, i=layer: a[i], params["layers"])}
        x, memory = module.apply(own, x, attend_video, None, layer == config.layers - 1)
        asked, _ = module.apply(own, asked, attend_question, memory)
    return qwen2.logits(params, config, asked), found


def loss(params: Params, config: LanguageConfig, batch: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy of the answers' tokens, and batch["help"] times the losses on attention."""
    scores, found = forward(params, config, batch)
    answer = batch["answer"]
    predicted = answer >= 0
    count = jnp.maximum(predicted.sum(), 1)
    each = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(answer, 0))
    answers = (each * predicted).sum() / count
    attention = attention_loss(batch, found)
    right = (predicted & (scores.argmax(-1) == answer)).sum()
    measures = {"tokens": count, "accuracy": right / count, "answers": answers, "attention": attention}
    return answers + batch["help"] * attention, measures


def attention_loss(batch: dict[str, Any], found: list) -> jax.Array:
    """The sum over designed heads of −log of the attention mass where it belongs, averaged over their tokens."""
    length = batch["ids"].shape[1]
    lay = layout((length - layout(0).length) // (VISUAL + 1))
    at, group = lay.visual_positions(), np.repeat(np.arange(lay.groups), VISUAL)

    def miss(weights: jax.Array, wanted: jax.Array, counts: jax.Array) -> jax.Array:
        each = -jnp.log((weights * wanted).sum(-1) + 1e-3) * counts
        return each.sum() / jnp.maximum(jnp.broadcast_to(counts, each.shape).sum(), 1)

    # Visual tokens: the timestamp of their group, their own picture in earlier groups, the picture before it.
    seen, before = batch["seen"], batch["before"]
    stamps = np.arange(length) == (lay.visual_positions()[::VISUAL] - 1)[group][:, None]
    earlier = (group[:, None] > group) & batch["mask"][np.ix_(at, at)]
    same = (seen[:, :, None] == seen[:, None]) & earlier
    follows = (before[:, :, None] == seen[:, None]) & (before[:, :, None] != NOTHING) & batch["mask"][np.ix_(at, at)]

    def in_video(tokens: jax.Array) -> jax.Array:
        """The wanted keys [B, G·9, L]; the prefix's first token if there are none."""
        wanted = jnp.zeros((*tokens.shape[:2], length), bool).at[..., at].set(tokens)
        return wanted.at[..., 0].set(~tokens.any(-1))

    video = [weights for weights, _ in found]
    shows = seen != NOTHING
    total = miss(video[0][:, 0, at], stamps, jnp.ones(seen.shape))
    total += miss(video[1][:, 0, at], in_video(same), shows) + miss(video[1][:, 3, at], in_video(follows), shows)

    names, count = seen[batch["video"]][:, None], batch["part"].shape[1]
    for number, (layer, head) in enumerate(FINDERS.values()):
        first, last, name = (batch["find"][:, :, number, i, None] for i in range(3))
        member = (first <= group) & (group <= last)
        showing = member & (names == name)
        showing = jnp.where(showing.any(-1, keepdims=True), showing, member)  # DTS may have missed the picture
        wanted = jnp.zeros((*showing.shape[:2], length), bool).at[..., at].set(showing)
        wanted = wanted.at[..., 0].set(first[..., 0] == ABSENT)
        pooled = jnp.einsum("rnl,sl->rns", wanted.astype(jnp.float32), batch["pool"]) > 0
        keys = jnp.concatenate([wanted, pooled], -1)
        total += miss(found[layer][1][:, head, :, :-count], keys, first[..., 0] >= ABSENT)
    part, place = batch["part"], batch["place"]
    own = part[:, :, None] == part[:, None]
    for number, (layer, head) in enumerate(READERS.values()):
        tokens = batch["read"][:, :, number]
        wanted = own & (place[:, None, :, None] == tokens[:, :, None]).any(-1)
        total += miss(found[layer][1][:, head, :, -count:], wanted, tokens[..., 0] >= 0)
    return total


def check(predict: Any, params: Params, bank: TokenBank) -> dict[str, float]:
    """Fraction of questions of which every token is right, given the right ones before it, by length and type.

    `predict` is (params, batch) → logits. Videos of up to 16 groups are seen whole and as rendered, longer ones composed
    and by the usual rule; all start at second 0.
    """
    hits = defaultdict(list)
    for groups in CHECKED:
        for i in range(CHECKS):
            rng, rule = np.random.default_rng((1, groups, i)), PrefillRule(4, None if groups <= 16 else 3)
            made = draw(bank, rng, groups, rule, mixed=False, rendered=1.0, moved=0.0)
            wrong = (np.asarray(predict(params, made)).argmax(-1) != made["answer"]) & (made["answer"] >= 0)
            for r, part in {(r, made["part"][r, n]) for r, n in np.argwhere(made["answer"] >= 0)}:
                tokens = made["part"][r] == part
                kind = questions.TYPES[made["type"][r][tokens][0]]
                hits[f"{FRAMES * groups} s {kind}"].append(not wrong[r][tokens].any())
    return {name: round(float(np.mean(found)), 3) for name, found in sorted(hits.items())}
