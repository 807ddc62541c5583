"""Videos for the language half: clips whose groups show visual tokens from a bank, exactly what DTS makes of such groups."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from experiments.nano import frames
from experiments.nano.frames import FRAMES, NOTHING
from experiments.nano.vision import token_labels
from experiments.synthetic import clips, pictures, vocabulary
from vxl2_jax.layout import Layout
from vxl2_jax.text import prompt

VISUAL = 9  # tokens per group
_INDEX = {name: i for i, name in enumerate(pictures.load()[0])}


class TokenBank(NamedTuple):
    """Visual tokens of rendered groups and what they show.

    Shapes: tokens float16 [G, 9, E]; seen int [G, 9], the picture that a token shows most; names and starts as in
    `frames.Bank`. `places`: the groups that show ((name, bit mask of its frames), ...).
    """

    split: int
    tokens: np.ndarray
    seen: np.ndarray
    starts: np.ndarray
    places: dict[tuple, np.ndarray]


class Video(NamedTuple):
    """tokens float16 [G·9, E]; seen and before int32 [G·9]: the picture that a token shows, and the one shown before it
    (NOTHING if there is none)."""

    clip: clips.Clip
    tokens: np.ndarray
    seen: np.ndarray
    before: np.ndarray


def token_bank(bank: frames.Bank, tokens: np.ndarray) -> TokenBank:
    """Index the groups by what they show."""
    places = defaultdict(list)
    for group, names in enumerate(bank.names):
        places[_shown(names)].append(group)
    seen = token_labels(bank.names, bank.boxes).argmax(-1)
    return TokenBank(bank.split, tokens, seen, bank.starts, {key: np.array(found) for key, found in places.items()})


def compose(bank: TokenBank, rng: np.random.Generator, groups: int, rendered: float) -> Video:
    """A random clip of pictures that the bank knows; with probability `rendered` one as it was rendered, if any is that
    long."""
    fitting = np.flatnonzero(np.diff(bank.starts) == groups)
    if rng.random() < rendered and len(fitting):
        i = int(rng.choice(fitting))
        here = slice(bank.starts[i], bank.starts[i + 1])
        return _video(frames.draw(bank.split, i, groups), bank.tokens[here], bank.seen[here])
    known = [name for name, i in _INDEX.items() if ((i, 15),) in bank.places]
    clip = clips.draw_clip(rng, seconds=FRAMES * groups, names=known)
    names = np.full(FRAMES * groups, -1)
    for event in clip.events:
        names[math.ceil(event.start_s) : math.ceil(event.stop_s)] = _INDEX[event.name]
    parts = [_draw_group(bank, rng, row) for row in names.reshape(groups, FRAMES)]
    return _video(clip, *(np.stack(part) for part in zip(*parts, strict=True)))


def _shown(names: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(name, bit mask of its frames) for each name in a group's four frames; (−1, 0) for none."""
    shown = [int(name) for name in dict.fromkeys(names.tolist()) if name >= 0]
    return tuple((name, sum(1 << f for f in range(FRAMES) if names[f] == name)) for name in shown) or ((-1, 0),)


def _draw_group(bank: TokenBank, rng: np.random.Generator, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and seen pictures of a group that shows the same; if there is none, of two laid over each other."""
    found = [bank.places[key] for key in (_shown(names),) if key in bank.places]
    if not found:
        found = [
            bank.places.get(((name, mask),), bank.places.get(((name, 15),), np.arange(1)))
            for name, mask in _shown(names)
        ]
    first, *others = (int(rng.choice(groups)) for groups in found)
    tokens, seen = bank.tokens[first], bank.seen[first]
    for group in others:
        over = (seen == NOTHING) | ((bank.seen[group] != NOTHING) & (rng.random(VISUAL) < 0.5))
        tokens, seen = np.where(over[:, None], bank.tokens[group], tokens), np.where(over, bank.seen[group], seen)
    return tokens, seen


def _video(clip: clips.Clip, tokens: np.ndarray, seen: np.ndarray) -> Video:
    before = np.full_like(seen, NOTHING)
    for earlier, event in zip(clip.events, clip.events[1:], strict=False):
        first, last = groups_of(event)
        part = slice(first, last + 1)
        before[part][seen[part] == _INDEX[event.name]] = _INDEX[earlier.name]
    return Video(clip, tokens.reshape(-1, tokens.shape[-1]), seen.reshape(-1), before.reshape(-1))


def groups_of(event: clips.Event) -> tuple[int, int]:
    """First and last group with a sampled frame of an event."""
    return math.ceil(event.start_s) // FRAMES, (math.ceil(event.stop_s) - 1) // FRAMES


def video_ids(groups: int, offset_s: int = 0) -> list[int]:
    """Tokens of prefix and video in natural order; visual ones are placeholders."""
    ids = vocabulary.encode(prompt.prefix_text())
    for group in range(groups):
        ids += vocabulary.encode(prompt.timestamp_text(FRAMES * group + offset_s)) + [1] * VISUAL
    return ids


def layout(groups: int) -> Layout:
    """Where a composed video's tokens are; a timestamp is one token."""
    return Layout(len(video_ids(0)), (1,) * groups, VISUAL)
