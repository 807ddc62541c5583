"""The first parameters of the language half: some heads already compare names or times, and copy what they find.

    layer 0, head 0     a visual token reads the number of its group's timestamp
    layer 0, head 1, 2  every token reads the token two places, one place before it
    layer 1, head 0     a visual token looks for its picture in earlier groups (for the prefix if there is none)
    layer 1, head 1, 2  for an answer's tokens: the name, the number in their question
    layer 1, head 3     a visual token reads the picture shown before its own; an answer's token the name whose follower
                        is wanted; both write it into the second place for names
    layer 2, head 0, 1  a name finds its first group, a number its moment
    layer 2, head 2     a name in an answer finds the same name in the question
    layer 3, head 0     a name finds its second appearance (layer 4, head 0: its third): not where it found itself
    layer 3, head 1, 2  an answer's tokens find the group of a name, of a time
    layer 3, head 3     an answer's tokens find the group before which the wanted name was shown

Training may use them otherwise. What is compared may be anywhere in the video: comparisons use the rotary pairs that turn
slowly (the last of 32 pairs at θ = 1e6). The gains below were set by looking at attention maps of generated videos.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.nano import directions
from experiments.nano.directions import NAME, OTHER, PERIODS, TIME, WAVES, WIDTH
from experiments.synthetic import vocabulary
from vxl2_jax.config import LanguageConfig
from vxl2_jax.models import qwen2

Params = Any
HALF = 32  # rotary pairs of a head: dimensions i and i + 32 turn together
NEAR, SLOW, NAMES = np.arange(4, 12), np.arange(18, 32), np.arange(21, 32)  # pairs
AFTER = 1.5  # seconds by which a moment lies after its group's timestamp, on average
COPY, FAINT, FLAG = 0.08, 0.02, 0.24  # output gains: a copied part keeps about its length; no use yet; yes or no
READ = {
    **dict.fromkeys([(0, 0), (1, 2), (2, 0), (3, 0), (4, 0), (5, 0)], TIME),
    **dict.fromkeys([(0, 3), (1, 1), (1, 3), (2, 1), (3, 1), (3, 2), (3, 3), (5, 1)], NAME),
}  # the part of the residual stream that a head copies; others read OTHER


class Head:
    """Views of one head's parameters: query, key and value [WIDTH, 64] and query_bias, key_bias [64], out [64, WIDTH]."""

    def __init__(self, layers: Params, layer: int, head: int) -> None:
        here = slice(head * 2 * HALF, (head + 1) * 2 * HALF)
        self.query, self.key, self.value = (layers[n]["kernel"][layer][:, here] for n in ("query", "key", "value"))
        self.query_bias, self.key_bias = (layers[n]["bias"][layer][here] for n in ("query", "key"))
        self.out = layers["out"]["kernel"][layer][here]
        self.seed = 10 * layer + head

    def copy(self, part: slice, gain: float) -> None:
        """Read a part of the stream (a random view of it, if it is wider than the head), and write it back."""
        self.value[:] = _view(part, self.seed)
        self.out[:] = gain * self.value.T

    def compare(self, query: np.ndarray, key: np.ndarray) -> None:
        """Attend where `query` and `key` [WIDTH, 64] agree."""
        self.query += query
        self.key += key

    def flag(self, row: np.ndarray) -> None:
        """The last dimension says whether what was found is a visual token, written along `row`."""
        self.value[:, -1] = directions.kinds()["visual"]
        self.out[-1] = FLAG * row

    def rest(self) -> None:
        """Look at the prefix's first token, visual tokens firmly, and so read nothing until it is learned."""
        self.query_bias[HALF - 1] = 3.0
        self.query[:, HALF - 1] += 3.0 * directions.kinds()["visual"]
        self.key[:, HALF - 1] += 2.0 * _word("<|im_start|>")

    def look_back(self, places: int) -> None:
        """Attend to the token so many places earlier, whatever it is."""
        pairs, gain = np.arange(8), 7.0
        angle = 1e6 ** (-pairs / HALF) * places
        self.query_bias[pairs], self.query_bias[pairs + HALF] = gain * np.cos(angle), -gain * np.sin(angle)
        self.key_bias[pairs] = gain

    def look_at_video(self, pair: int) -> None:
        """Attend to visual tokens before text, a little more to those with a picture; the prefix's first token, for what
        is not there, lies between. `pair` hardly turns in the longest video."""
        kinds = directions.kinds()
        self.query_bias[pair] = 10.0
        text = 1.2 * _word("<|im_start|>") - 3.0 * (kinds["name"] + kinds["number"])
        self.key[:, pair] += 4.6 * kinds["visual"] + 0.5 * _shows() + text

    def prefer_early(self, *pairs: int) -> None:
        """Attend to visual tokens more the earlier they are. A quarter turn of `pairs` is about the longest video."""
        for pair in pairs:
            self.query_bias[pair + HALF] = -3.0
            self.key[:, pair] += 2.0 * directions.kinds()["visual"]


def init(key: jax.Array, config: LanguageConfig) -> Params:
    """Parameters as `qwen2.init` makes them, with these heads and the embedding of `directions`."""
    params = jax.tree.map(np.array, qwen2.init(key, config))
    params["embed"] = directions.embedding()
    layers = params["layers"]
    for name, gain in (("down", 0.1), ("query", 0.2), ("key", 0.2)):
        layers[name]["kernel"] *= gain
    heads = {(i, j): Head(layers, i, j) for i in range(config.layers) for j in range(config.heads)}
    for at, head in heads.items():
        head.copy(READ.get(at, OTHER), COPY if at in READ else FAINT)
        if at not in ((0, 0), (1, 0), (1, 3)):
            head.rest()
    kinds = directions.kinds()
    for back, at in ((2, 1), (1, 2)):
        heads[0, at].look_back(back)
        heads[0, at].out[:] = COPY / 2 * _view(OTHER, 90 + back).T
    heads[0, 0].compare(*_along(NEAR, kinds["visual"], kinds["number"]))

    heads[1, 0].compare(*_same_name_elsewhere())
    heads[1, 0].compare(*_along([20], 1.4 * _shows(), 1.4 * _shows()))
    heads[1, 0].flag(kinds["seen"])
    heads[1, 3].compare(*_shown_before())
    heads[1, 3].out[:] = COPY * directions.previous()

    for at in ((2, 0), (3, 1)):
        heads[at].compare(*_same_name())
        heads[at].look_at_video(17)
        heads[at].prefer_early(15, 16)
        heads[at].key[:, 17] -= 2.5 * kinds["seen"]  # of groups that attend to each other, only the first
    heads[2, 2].compare(*_same_name())
    heads[2, 2].query_bias[17] = -10.0  # in text, not in the video
    heads[2, 2].key[:, 17] += 4.6 * kinds["visual"]
    heads[2, 2].out[:] = COPY * _view(OTHER, 93).T
    for at in ((2, 1), (3, 2)):
        heads[at].compare(*_same_time())
        heads[at].look_at_video(31)
    heads[3, 3].compare(*_follows())
    heads[3, 3].look_at_video(17)
    heads[3, 1].flag(0.5 * (_word("yes") - _word("no")))
    for layer, more, less in ((3, "twice", "once"), (4, "three", "twice")):
        head = heads[layer, 0]
        head.compare(*_same_name_elsewhere())
        head.look_at_video(20)
        head.prefer_early(13)
        head.flag(0.5 * (_word(more) - _word(less)))
    return jax.tree.map(jnp.asarray, params)


def _view(part: slice, seed: int) -> np.ndarray:
    """[WIDTH, 64] orthonormal columns that read a part of the stream, or a random view of it."""
    size, width = part.stop - part.start, 2 * HALF
    full = np.zeros((WIDTH, width), np.float32)
    if size > width:
        full[part] = np.linalg.qr(np.random.default_rng((8, seed)).normal(size=(size, size)))[0][:, :width]
    else:
        full[part] = np.eye(size, width)
    return full


def _word(text: str) -> np.ndarray:
    return directions.embedding()[vocabulary.words().index(text)]


def _shows() -> np.ndarray:
    """[WIDTH]: positive on visual tokens that show a picture, negative on the others, about nothing on text."""
    return directions.kinds()["visual"] - 0.9 * directions.names()[-1]


def _along(places: Any, query: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projections of one direction each into some dimensions of the head."""
    matrices = np.zeros((2, WIDTH, 2 * HALF), np.float32)
    matrices[0][:, places], matrices[1][:, places] = query[:, None], key[:, None]
    return matrices[0], matrices[1]


def spread(count: int, width: int) -> np.ndarray:
    """[count, width]: unit rows, more than the width, as far apart as a few rounds can push them."""
    rows = np.random.default_rng(7).normal(size=(count, width))
    for _ in range(300):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        near = np.clip(rows @ rows.T, -0.15, 0.15)
        np.fill_diagonal(near, 1.0)
        size, turn = np.linalg.eigh(near)
        rows = turn[:, -width:] * np.sqrt(size[-width:].clip(0))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _names_into(pairs: np.ndarray, gain: float) -> np.ndarray:
    """[NAME, 64]: the name part in the given rotary pairs, so that names keep apart."""
    places = np.concatenate([pairs, pairs + HALF])
    names = directions.names()[:, NAME]
    view = np.zeros((NAME.stop - NAME.start, 2 * HALF), np.float32)
    view[:, places] = gain * names.T @ spread(len(names), len(places))
    return view


def _name_matrix(pairs: np.ndarray, gain: float) -> np.ndarray:
    full = np.zeros((WIDTH, 2 * HALF), np.float32)
    full[NAME] = _names_into(pairs, gain)
    return full


def _times_into(waves: np.ndarray, pairs: np.ndarray, gain: float, shift_s: float = 0.0) -> np.ndarray:
    """[WIDTH, 64]: waves of the time part, moved back by `shift_s`, in rotary pairs one for one."""
    full = np.zeros((WIDTH, 2 * HALF), np.float32)
    angle = 2 * np.pi * shift_s / PERIODS[waves]
    cos, sin = waves, WAVES + waves
    full[cos, pairs], full[sin, pairs] = gain * np.cos(angle), gain * np.sin(angle)
    full[sin, pairs + HALF], full[cos, pairs + HALF] = gain * np.cos(angle), -gain * np.sin(angle)
    return full


def _same_name() -> tuple[np.ndarray, np.ndarray]:
    return _name_matrix(SLOW, 2.0), _name_matrix(SLOW, 2.0)


def _same_name_elsewhere() -> tuple[np.ndarray, np.ndarray]:
    names, time = _name_matrix(NAMES, 2.0), _times_into(np.arange(4, 10), np.arange(14, 20), 1.6)
    return names + time, names - time


def _follows() -> tuple[np.ndarray, np.ndarray]:
    names = directions.previous().T @ _names_into(SLOW, 2.2)
    return names, names


def _same_time() -> tuple[np.ndarray, np.ndarray]:
    # Short waves tell neighbouring groups apart: they get the slowest pairs but one, which has other use.
    waves = np.arange(1, WAVES)
    return _times_into(waves, 31 - waves, 1.6, AFTER), _times_into(waves, 31 - waves, 1.6)


def _shown_before() -> tuple[np.ndarray, np.ndarray]:
    """The latest visual tokens that show a picture, but not the same one."""
    query, key = -2.2 * _name_matrix(NAMES, 1.0), _name_matrix(NAMES, 1.0)
    for places, factor in (
        ([17, 18, 19], 2.0),
        # Attention falls with distance from the first token on, to about 200 tokens.
        ([10, 11, 12], 1.6 * np.cos(0.8)),
        ([10 + HALF, 11 + HALF, 12 + HALF], 1.6 * np.sin(0.8)),
    ):
        query[:, places] += factor * _shows()[:, None]
    key[:, [17, 18, 19]] += 2.0 * _shows()[:, None]
    key[:, [10, 11, 12]] += 1.6 * _shows()[:, None]
    return query, key
