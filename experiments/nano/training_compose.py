"""Videos for the language half, composed from a bank of visual tokens, with questions packed beside them."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from nano import clips, pictures, questions, training_dts, training_frames, training_rows, vocabulary
from vxl2_jax.text import prompt

FRAMES = 4
QUESTION = 12.5  # tokens that a question with its answer takes, the mean over the types rounded up
# What a question's token is to find, for the losses on attention (`Batch.kind`).
NAME, NUMBER, EXISTS, FIRST, WHEN, WHAT = range(1, 7)


@dataclass(frozen=True)
class Bank:
    """Visual tokens of rendered groups and what they show.

    Shapes: tokens fp16 [G, 9, E]; seen int8 [G, 9], the name a token shows most, 48 where none;
    names int16 [G, 4], −1 where none; starts [C + 1] of the clips. `places` finds groups by
    (name, frames it is on screen as a bit mask), one name at most; by pairs where there are two.
    """

    split: int
    tokens: np.ndarray
    seen: np.ndarray
    names: np.ndarray
    starts: np.ndarray
    places: dict


@dataclass(frozen=True)
class Batch:
    """B videos of G groups, each with its questions laid one after the other into N tokens.

    Shapes: ids int32 [B, L] of prefix and video (placeholders where visual tokens go); visual fp16
    [B, G·9, E]; seen int32 [B, G·9]; and int32 [B, N]: asked, the tokens; part, which question (−1 none);
    place, the token's number within it; type, the question's; answer, the next token where it is to be
    predicted, else −1; kind, aim_group, aim_name: what the token's attention should find (group −1: the
    picture is absent).
    """

    ids: np.ndarray
    visual: np.ndarray
    seen: np.ndarray
    asked: np.ndarray
    part: np.ndarray
    place: np.ndarray
    type: np.ndarray
    answer: np.ndarray
    kind: np.ndarray
    aim_group: np.ndarray
    aim_name: np.ndarray


def make_bank(split: int, frames: training_frames.Frames, tokens: np.ndarray) -> Bank:
    """Index the groups that have visual tokens."""
    count = len(tokens)
    names, boxes = np.asarray(frames.names[:count]), np.asarray(frames.boxes[:count])
    seen = training_dts.labels(names, boxes).argmax(-1).astype(np.int8)
    places = defaultdict(list)
    for g, row in enumerate(names):
        places[_key(row)].append(g)
    starts = frames.starts[frames.starts <= count]
    return Bank(split, tokens, seen, names, starts, {key: np.array(found) for key, found in places.items()})


def _key(row: np.ndarray) -> tuple:
    """(name, mask) for each name of a group's four frames; (−1, 0) for none."""
    shown = [int(n) for n in dict.fromkeys(row.tolist()) if n >= 0]
    return tuple((n, sum(1 << f for f in range(FRAMES) if row[f] == n)) for n in shown) or ((-1, 0),)


def _group(bank: Bank, rng: np.random.Generator, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and seen names of some group that shows the same; of two laid over each other if need be."""
    key = _key(row)
    if key in bank.places:
        g = rng.choice(bank.places[key])
        return bank.tokens[g], bank.seen[g]
    parts = []
    for name, mask in key:
        found = bank.places.get(((name, mask),))
        if found is None:
            found = bank.places[((name, 15),)]
        parts.append(int(rng.choice(found)))
    tokens, seen = bank.tokens[parts[0]], bank.seen[parts[0]]
    for g in parts[1:]:
        other = (seen == 48) | ((bank.seen[g] != 48) & (rng.random(9) < 0.5))
        tokens, seen = np.where(other[:, None], bank.tokens[g], tokens), np.where(other, bank.seen[g], seen)
    return tokens, seen


def compose(bank: Bank, rng: np.random.Generator, groups: int) -> tuple[clips.Clip, np.ndarray, np.ndarray]:
    """A random clip with the visual tokens of bank groups that show what it shows."""
    clip = clips.draw_clip(rng, seconds=FRAMES * groups, names=pictures.load()[0])
    index = {name: i for i, name in enumerate(pictures.load()[0])}
    rows = np.full(FRAMES * groups, -1)
    for event in clip.events:
        rows[math.ceil(event.start_s) : math.ceil(event.stop_s)] = index[event.name]
    parts = [_group(bank, rng, row) for row in rows.reshape(groups, FRAMES)]
    return clip, np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def video_ids(groups: int, offset: int) -> list[int]:
    """Tokens of prefix and video; visual ones are placeholders."""
    ids = vocabulary.encode(prompt.prefix_text())
    for g in range(groups):
        ids += vocabulary.encode(prompt.timestamp_text(FRAMES * g + offset)) + [1] * 9
    return ids


def question_row(clip: clips.Clip, question: questions.Question, offset: int) -> dict[str, np.ndarray]:
    """One question's tokens, targets and what its tokens should find; see `Batch`."""
    before = vocabulary.encode(prompt.suffix_text(question.question))
    after = vocabulary.encode(question.answer) + [vocabulary.SPECIAL.index("<|im_end|>")]
    length = len(before) + len(after) - 1
    row = {key: np.full(length, fill, np.int32) for key, fill in
           (("answer", -1), ("kind", 0), ("aim_group", -1), ("aim_name", 0))}
    row["asked"], row["place"] = np.array((before + after)[:-1]), np.arange(length)
    row["type"] = np.full(length, questions.TYPES.index(question.type))
    row["answer"][len(before) - 1 :] = after
    starts, all_names = questions.first_starts(clip), pictures.load()[0]
    first = {name: math.ceil(start) // FRAMES for name, start in starts.items()}
    asked = {i: vocabulary.words()[token] for i, token in enumerate(before)}

    def aim(place: int, kind: int, name: str, group: int) -> None:
        row["kind"][place], row["aim_name"][place], row["aim_group"][place] = kind, all_names.index(name), group

    for i, word in asked.items():
        if word in all_names:
            aim(i, NAME, word, first.get(word, -1))
        elif word.isdigit():
            name = question.answer.split()[-1]
            group = (int(word) - offset) // FRAMES
            aim(i, NUMBER, name, group)
    named = [word for word in asked.values() if word in all_names]
    kind = {"exists": EXISTS, "first": FIRST, "when": WHEN, "what": WHAT}[question.type]
    name = {"exists": named, "when": named}.get(question.type, [question.answer.split()[-1]])[0]
    places = [len(before) - 1] if kind == EXISTS else [len(before) - 1, len(before)]
    for place in places:
        aim(place, kind, name, group if kind == WHAT else first.get(name, -1))
    return row


def batch(
    bank: Bank, rng: np.random.Generator, size: int, groups: int, count: int, real: float = 0.0, offsets: float = 0.5
) -> Batch:
    """`size` videos, `count` questions each. A share `real` are clips as rendered, if any are that long.

    A share `offsets` of the videos starts at a random second up to 200, the others at 0.
    """
    lengths = np.diff(bank.starts)
    rows = defaultdict(list)
    for _ in range(size):
        fitting = np.flatnonzero(lengths == groups)
        if len(fitting) and rng.random() < real:
            i = int(rng.choice(fitting))
            clip, here = training_frames.draw(bank.split, i, groups), slice(bank.starts[i], bank.starts[i + 1])
            tokens, seen = bank.tokens[here].reshape(-1, training_rows.WIDTH), bank.seen[here].reshape(-1)
        else:
            clip, tokens, seen = compose(bank, rng, groups)
        offset = int(rng.integers(0, 200)) if rng.random() < offsets else 0
        asked = questions.questions(rng, clip, count, offset_s=offset)
        rows["ids"].append(video_ids(groups, offset))
        rows["visual"].append(tokens)
        rows["seen"].append(seen)
        packed = [question_row(clip, q, offset) for q in asked]
        for i, row in enumerate(packed):
            row["part"] = np.full(len(row["asked"]), i)
        for key in packed[0]:
            line = np.full(math.ceil(QUESTION * count), -1 if key in ("part", "answer") else 0)
            whole = np.concatenate([row[key] for row in packed])[: len(line)]
            line[: len(whole)] = whole
            rows[key].append(line)
    return Batch(**{key: np.stack(value).astype(np.float16 if key == "visual" else np.int32) for key, value in rows.items()})
