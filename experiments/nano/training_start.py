"""The language half's first parameters: heads that already compare names or times and copy what they find.

Which layer is to do what (training is free to do otherwise, and does):

    layer 0, head 0     a visual token reads the number in its own group's timestamp
    layer 0, head 1/2   every token reads which token is two, one before it
    layer 1, head 0     a visual token looks for its picture in earlier groups (the prefix when there is none)
    layer 1, head 1/2   an answer's tokens read the name, the number in their question
    layer 1, head 3     a visual token reads which picture was shown before its own; an answer's token reads the name
                        whose follower is wanted; both write it apart from their own name
    layer 2, head 0/1   a name finds its first group, a number its moment
    layer 2, head 2     a name in an answer finds the same name in the question
    layer 3, head 0     a name finds its second appearance (layer 4, head 0: its third): not where it found itself
    layer 3, head 1/2   an answer's tokens find the group by name, by time
    layer 3, head 3     an answer's tokens find the group before which the wanted name was shown

Comparisons sit where rotary positions turn slowly (the last 18 of 32 pairs at θ = 1e6), since what is
compared lies anywhere in the video.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.nano import training_rows
from experiments.nano.training_rows import NAME, OTHER, PERIODS, TIME, WAVES, WIDTH
from experiments.synthetic import vocabulary
from vxl2_jax.config import LanguageConfig
from vxl2_jax.models import qwen2

Params = Any
HALF = 32  # rotary pairs of a head: dimensions i and i + 32 turn together
NEAR = np.arange(4, 12)  # pairs whose turn tells apart distances of a few to a few dozen tokens
SLOW = np.arange(18, 32)
AFTER = 1.5  # seconds by which a moment lies after its group's stamp, on average
COPY = 0.08  # a copied part comes out about as long as it went in
FAINT = 0.02  # what heads write that have nothing to do yet
FLAG = 3 * COPY  # and one that says yes or no, longer


def init(key: jax.Array, config: LanguageConfig) -> Params:
    """Parameters as `qwen2.init` makes them, with the heads above written in."""
    params = jax.tree.map(np.array, qwen2.init(key, config))
    params["embed"] = training_rows.embedding()
    layers = params["layers"]
    layers["down"]["kernel"] *= 0.1
    read = {
        (0, 0): TIME,
        (0, 3): NAME,
        (1, 1): NAME,
        (1, 2): TIME,
        (2, 0): TIME,
        (2, 1): NAME,
        (3, 1): NAME,
        (3, 2): NAME,
        (3, 3): NAME,
        (5, 0): TIME,
        (5, 1): NAME,
    }
    for name in ("query", "key"):
        layers[name]["kernel"] *= 0.2
    for layer in range(config.layers):
        for head in range(config.heads):
            here = _columns(config, head)
            value = _value(read.get((layer, head), OTHER), 10 * layer + head, config.head_width)
            layers["value"]["kernel"][layer][:, here] = value
            layers["out"]["kernel"][layer][here] = (COPY if (layer, head) in read else FAINT) * value.T
            if (layer, head) not in ((0, 0), (1, 0), (1, 3)):
                _rest(layers, config, layer, head)
    for back, head in ((2, 1), (1, 2)):
        _look_back(layers, config, 0, head, back)
        layers["out"]["kernel"][0][_columns(config, head)] = 0.5 * COPY * _value(OTHER, 90 + back, config.head_width).T
    layers["out"]["kernel"][2][_columns(config, 2)] = COPY * _value(OTHER, 93, config.head_width).T
    _write(layers, config, 0, 0, *_own_stamp())
    _write(layers, config, 1, 0, *_seen_before())
    layers["query"]["kernel"][1][:, 20] += 1.4 * _shows()
    layers["key"]["kernel"][1][:, 20] += 1.4 * _shows()
    _flag(layers, config, 1, 0, training_rows.kinds()["seen"])
    _write(layers, config, 1, 3, *_shown_before())
    value = _value(NAME, 13, config.head_width)
    layers["value"]["kernel"][1][:, _columns(config, 3)] = value
    layers["out"]["kernel"][1][_columns(config, 3)] = COPY * training_rows.previous()
    for layer, head in ((2, 0), (3, 1)):
        _write(layers, config, layer, head, *_same_name())
        _look_at_video(layers, config, layer, head, 17)
        _prefer_early(layers, config, layer, head, np.array([15, 16]))
        start = _columns(config, head).start  # of those in sight of each other, only the first
        layers["key"]["kernel"][layer][:, start + 17] -= 2.5 * training_rows.kinds()["seen"]
    _write(layers, config, 2, 2, *_same_name())
    layers["query"]["bias"][2][_columns(config, 2).start + 17] = -10.0  # in text, not in the video
    layers["key"]["kernel"][2][:, _columns(config, 2).start + 17] += 4.6 * training_rows.kinds()["visual"]
    for layer, head in ((2, 1), (3, 2)):
        _write(layers, config, layer, head, *_same_time())
        _look_at_video(layers, config, layer, head, 31)
    _write(layers, config, 3, 3, *_follows())
    _look_at_video(layers, config, 3, 3, 17)

    def word(text):
        return training_rows.embedding()[vocabulary.words().index(text)]

    _flag(layers, config, 3, 1, 0.5 * (word("yes") - word("no")))
    for layer, more, less in ((3, "twice", "once"), (4, "three", "twice")):
        _write(layers, config, layer, 0, *_seen_before())
        _look_at_video(layers, config, layer, 0, 20)
        _prefer_early(layers, config, layer, 0, np.array([13]))
        time = _value(TIME, 10 * layer, config.head_width)
        layers["value"]["kernel"][layer][:, _columns(config, 0)] = time
        layers["out"]["kernel"][layer][_columns(config, 0)] = COPY * time.T
        _flag(layers, config, layer, 0, 0.5 * (word(more) - word(less)))
    return jax.tree.map(jnp.asarray, params)


def _columns(config: LanguageConfig, head: int) -> slice:
    return slice(head * config.head_width, (head + 1) * config.head_width)


def _write(layers: Params, config: LanguageConfig, layer: int, head: int, query: np.ndarray, key: np.ndarray) -> None:
    """Add [WIDTH, head_width] projections to a head."""
    for name, matrix in (("query", query), ("key", key)):
        layers[name]["kernel"][layer][:, _columns(config, head)] += matrix


def _value(part: slice, seed: int, width: int) -> np.ndarray:
    """[WIDTH, head_width] orthonormal columns that take a part of the stream (or a random view of it)."""
    size = part.stop - part.start
    turn = np.linalg.qr(np.random.default_rng((8, seed)).normal(size=(max(size, width),) * 2))[0]
    full = np.zeros((WIDTH, width), np.float32)
    full[part] = turn[:size, :width] if size > width else np.eye(size, width)
    return full


def _flag(layers: Params, config: LanguageConfig, layer: int, head: int, row: np.ndarray) -> None:
    """The head's last dimension says whether what it found is a visual token, and writes that along `row`."""
    last = _columns(config, head).stop - 1
    layers["value"]["kernel"][layer][:, last] = training_rows.kinds()["visual"]
    layers["out"]["kernel"][layer][last] = FLAG * row


def _frequency(pairs: np.ndarray, config: LanguageConfig) -> np.ndarray:
    """Radians that rotary pairs turn per token."""
    return config.rope_theta ** (-pairs / HALF)


def _rest(layers: Params, config: LanguageConfig, layer: int, head: int) -> None:
    """All tokens look at the prefix's first token, visual ones firmly, and so read nothing until they learn to."""
    place = _columns(config, head).start + HALF - 1
    layers["query"]["bias"][layer][place] = 3.0
    layers["query"]["kernel"][layer][:, place] += 3.0 * training_rows.kinds()["visual"]
    layers["key"]["kernel"][layer][:, place] += 2.0 * _first()


def _look_back(layers: Params, config: LanguageConfig, layer: int, head: int, back: int) -> None:
    """Attention to the token `back` places earlier, whatever it is."""
    pairs, start, gain = np.arange(8), _columns(config, head).start, 7.0
    angle = _frequency(pairs, config) * back
    layers["query"]["bias"][layer][start + pairs] = gain * np.cos(angle)
    layers["query"]["bias"][layer][start + pairs + HALF] = -gain * np.sin(angle)
    layers["key"]["bias"][layer][start + pairs] = gain


def _look_at_video(layers: Params, config: LanguageConfig, layer: int, head: int, lasting: int) -> None:
    """Visual tokens draw more attention than text, those with a picture a little more; in between lies the prefix's
    first token, for what is not there. `lasting` is a rotary pair that hardly turns in the longest video."""
    place, kinds = _columns(config, head).start + lasting, training_rows.kinds()
    layers["query"]["bias"][layer][place] = 10.0
    text = 1.2 * _first() - 3.0 * (kinds["name"] + kinds["number"])
    layers["key"]["kernel"][layer][:, place] += 4.6 * kinds["visual"] + 0.5 * _shows() + text


def _prefer_early(layers: Params, config: LanguageConfig, layer: int, head: int, pairs: np.ndarray) -> None:
    """Visual tokens draw more attention the farther back they lie. `pairs`: rotary pairs whose quarter turn is about the
    longest video."""
    start = _columns(config, head).start
    layers["query"]["bias"][layer][start + pairs + HALF] = -3.0
    layers["key"]["kernel"][layer][:, start + pairs] += 2.0 * training_rows.kinds()["visual"][:, None]


def _first() -> np.ndarray:
    """[WIDTH]: the direction of the prefix's first token."""
    return training_rows.embedding()[vocabulary.words().index("<|im_start|>")]


def _shows() -> np.ndarray:
    """[WIDTH]: positive on visual tokens that show a picture, negative on the others, about nothing on text."""
    return training_rows.kinds()["visual"] - 0.9 * training_rows.names()[-1]


def _blank() -> np.ndarray:
    return np.zeros((WIDTH, 2 * HALF), np.float32)


@functools.cache
def _apart(width: int) -> np.ndarray:
    """[names, width]: unit rows as far from each other as a few rounds can push them; there are more names than
    slow rotary pairs have room for."""
    names = training_rows.names()[:, NAME]
    rows = np.random.default_rng(7).normal(size=(len(names), width))
    for _ in range(300):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        near = np.clip(rows @ rows.T, -0.15, 0.15)
        np.fill_diagonal(near, 1.0)
        size, turn = np.linalg.eigh(near)
        rows = turn[:, -width:] * np.sqrt(size[-width:].clip(0))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _names_into(pairs: np.ndarray, gain: float, rows: np.ndarray | None = None) -> np.ndarray:
    """The name part (or names written along `rows`), laid into the given rotary pairs so that names keep apart."""
    places = np.concatenate([pairs, pairs + HALF])
    view = gain * training_rows.names()[:, NAME].T @ _apart(len(places))
    matrix = _blank()
    if rows is None:
        matrix[NAME, places] = view
    else:
        matrix[:, places] = rows.T @ view
    return matrix


def _times_into(waves: np.ndarray, pairs: np.ndarray, gain: float, shift: float = 0.0) -> np.ndarray:
    """Waves of the time part, moved `shift` seconds back, laid into rotary pairs one for one."""
    matrix, start = _blank(), TIME.start
    angle = 2 * np.pi * shift / PERIODS[waves]
    cos, sin = start + waves, start + WAVES + waves
    matrix[cos, pairs], matrix[sin, pairs] = gain * np.cos(angle), gain * np.sin(angle)
    matrix[sin, pairs + HALF], matrix[cos, pairs + HALF] = gain * np.cos(angle), -gain * np.sin(angle)
    return matrix


def _own_stamp() -> tuple[np.ndarray, np.ndarray]:
    query, key = _blank(), _blank()
    query[:, NEAR] = training_rows.kinds()["visual"][:, None]
    key[:, NEAR] = training_rows.kinds()["number"][:, None]
    return query, key


def _seen_before() -> tuple[np.ndarray, np.ndarray]:
    names = _names_into(np.arange(21, 32), 2.0)
    waves, pairs = np.arange(4, 10), np.arange(14, 20)
    time = _times_into(waves, pairs, 1.6)
    return names + time, names - time


def _shown_before() -> tuple[np.ndarray, np.ndarray]:
    """The latest visual tokens that show a picture, but not the same one."""
    shows = _shows()
    names = _names_into(np.arange(21, 32), 1.0)
    query, key = -2.2 * names, names
    lasting, fading = np.array([17, 18, 19]), np.array([10, 11, 12])
    for matrix in (query, key):
        matrix[:, lasting] += 2.0 * shows[:, None]
    turned = 0.8  # radians: attention falls with distance from the first token on, to about 200 tokens
    query[:, fading] += 1.6 * np.cos(turned) * shows[:, None]
    query[:, fading + HALF] += 1.6 * np.sin(turned) * shows[:, None]
    key[:, fading] += 1.6 * shows[:, None]
    return query, key


def _same_name() -> tuple[np.ndarray, np.ndarray]:
    names = _names_into(SLOW, 2.0)
    return names, names


def _follows() -> tuple[np.ndarray, np.ndarray]:
    names = _names_into(SLOW, 2.2, training_rows.previous())
    return names, names


def _same_time() -> tuple[np.ndarray, np.ndarray]:
    # Short waves tell neighbouring groups apart: they get the slow pairs, but for the slowest, which has other use.
    waves = np.arange(1, WAVES)
    return _times_into(waves, 31 - waves, 1.6, AFTER), _times_into(waves, 31 - waves, 1.6)
