"""Videos for the language half, composed from a bank of visual tokens, with questions packed beside them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.nano import training_dts, training_frames, training_rows
from experiments.nano.training_aims import NOWHERE, question_row
from experiments.nano.training_vision import NONE
from experiments.synthetic import clips, pictures, questions, vocabulary
from vxl2_jax.text import prompt

FRAMES = 4
VISUAL = 9  # tokens per group
QUESTION = 14  # tokens that a question with its answer takes, about the mean over the types
LONGEST = 36  # and at most
# What rows are filled up with, where not with 0.
_FILL = {"part": -1, "answer": -1, "look": -1, "aim": NOWHERE, "aim_second": NOWHERE, "aim_third": NOWHERE}


@dataclass(frozen=True)
class Bank:
    """Visual tokens of rendered groups and what they show.

    Shapes: tokens fp16 [G, 9, E]; seen int8 [G, 9], the name a token shows most, NONE where none;
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
class Video:
    """A clip with its visual tokens: tokens fp16 [G·9, E]; seen and before int [G·9]: the name a token shows and the
    name shown before that one (NONE where none)."""

    clip: clips.Clip
    tokens: np.ndarray
    seen: np.ndarray
    before: np.ndarray


@dataclass(frozen=True)
class Batch:
    """B videos of G groups and R rows of N tokens with questions about them.

    Packed, row b holds the questions about video b one after the other (R = B); else every row holds one question.

    Shapes: ids int32 [B, L] of prefix and video (placeholders where visual tokens go); visual fp16
    [B, G·9, E]; seen, before int32 [B, G·9] as in `Video`; and for the rows what `training_aims.question_row`
    gives, int32 [R, N] or [R, N, 2], and part [R, N]: which question (−1 none).
    """

    ids: np.ndarray
    visual: np.ndarray
    seen: np.ndarray
    before: np.ndarray
    asked: np.ndarray
    part: np.ndarray
    place: np.ndarray
    type: np.ndarray
    answer: np.ndarray
    kind: np.ndarray
    look: np.ndarray
    aim_name: np.ndarray
    aim: np.ndarray
    aim_second: np.ndarray
    aim_third: np.ndarray


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
        other = (seen == NONE) | ((bank.seen[g] != NONE) & (rng.random(VISUAL) < 0.5))
        tokens, seen = np.where(other[:, None], bank.tokens[g], tokens), np.where(other, bank.seen[g], seen)
    return tokens, seen


def compose(bank: Bank, rng: np.random.Generator, groups: int) -> Video:
    """A random clip of names that the bank knows, with the visual tokens of bank groups that show what it shows."""
    index = {name: i for i, name in enumerate(pictures.load()[0])}
    known = [name for name, i in index.items() if ((i, 15),) in bank.places]
    clip = clips.draw_clip(rng, seconds=FRAMES * groups, names=known)
    rows = np.full(FRAMES * groups, -1)
    for event in clip.events:
        rows[math.ceil(event.start_s) : math.ceil(event.stop_s)] = index[event.name]
    parts = [_group(bank, rng, row) for row in rows.reshape(groups, FRAMES)]
    return _video(clip, *(np.concatenate(part) for part in zip(*parts, strict=True)))


def rendered(bank: Bank, rng: np.random.Generator, groups: int) -> Video | None:
    """A random clip of the bank as it was rendered, None where none is that long."""
    fitting = np.flatnonzero(np.diff(bank.starts) == groups)
    if not len(fitting):
        return None
    i = int(rng.choice(fitting))
    here = slice(bank.starts[i], bank.starts[i + 1])
    tokens, seen = bank.tokens[here].reshape(-1, training_rows.WIDTH), bank.seen[here].reshape(-1)
    return _video(training_frames.draw(bank.split, i, groups), tokens, seen)


def _video(clip: clips.Clip, tokens: np.ndarray, seen: np.ndarray) -> Video:
    index = {name: i for i, name in enumerate(pictures.load()[0])}
    shown = seen.reshape(-1, VISUAL).astype(np.int32)
    before = np.full_like(shown, NONE)
    for earlier, event in zip((None, *clip.events), clip.events, strict=False):
        if earlier is not None:
            part = slice(math.ceil(event.start_s) // FRAMES, (math.ceil(event.stop_s) - 1) // FRAMES + 1)
            before[part][shown[part] == index[event.name]] = index[earlier.name]
    return Video(clip, tokens, shown.reshape(-1), before.reshape(-1))


def video_ids(groups: int, offset: int) -> list[int]:
    """Tokens of prefix and video; visual ones are placeholders."""
    ids = vocabulary.encode(prompt.prefix_text())
    for g in range(groups):
        ids += vocabulary.encode(prompt.timestamp_text(FRAMES * g + offset)) + [1] * VISUAL
    return ids


def batch(
    bank: Bank,
    rng: np.random.Generator,
    size: int,
    groups: int,
    count: int,
    *,
    real: float = 0.0,
    offsets: float = 0.5,
    packed: bool = True,
    types: Sequence[str] = questions.TYPES,
) -> tuple[Batch, list[list[questions.Question]]]:
    """`size` videos, `count` questions about each, and these questions.

    Args:
      bank, rng: where visual tokens come from, and what draws.
      real: share of videos that are clips as rendered, if any are that long.
      offsets: share of videos that start at a random second instead of 0.
      packed: the questions about a video share one row; what does not fit is cut off.
      types: of questions, in turn.
    """
    rows, every = defaultdict(list), []
    for _ in range(size):
        video = rendered(bank, rng, groups) if rng.random() < real else None
        video = video or compose(bank, rng, groups)
        offset = int(rng.integers(vocabulary.NUMBERS - FRAMES * groups)) if rng.random() < offsets else 0
        asked = questions.questions(rng, video.clip, count, types, offset)
        every.append(asked)
        rows["ids"].append(video_ids(groups, offset))
        for key, value in (("visual", video.tokens), ("seen", video.seen), ("before", video.before)):
            rows[key].append(value)
        lines = [question_row(video.clip, q, offset) for q in asked]
        for part, line in enumerate(lines):
            line["part"] = np.full(len(line["asked"]), part if packed else 0)
        for key in lines[0]:
            values = [line[key] for line in lines]
            if packed:
                rows[key].append(fit(np.concatenate(values), QUESTION * count, _FILL.get(key, 0)))
            else:
                rows[key] += [fit(value, LONGEST, _FILL.get(key, 0)) for value in values]
    dtype = defaultdict(lambda: np.int32, visual=np.float16)
    return Batch(**{key: np.stack(value).astype(dtype[key]) for key, value in rows.items()}), every


def fit(values: np.ndarray, length: int, fill: int) -> np.ndarray:
    """Cut or filled up to `length` along the first axis."""
    values = values[:length]
    return np.pad(values, [(0, length - len(values))] + [(0, 0)] * (values.ndim - 1), constant_values=fill)
