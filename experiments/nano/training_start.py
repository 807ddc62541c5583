"""The language half's first parameters: heads that already compare names or times and copy what they find.

Which layer is to do what (training is free to do otherwise, and does):

    layer 0, head 0   a visual token reads the number in its own group's timestamp
    layer 1, head 0   a visual token looks for its picture in earlier groups (the prefix when there is none)
    layer 1, head 1/2 an answer's tokens read the name, the number in their question
    layer 2, head 0/1 a name in a question finds its first group, a number finds its moment
    layer 3, head 0–2 an answer's tokens find the group: by name for its time, by name, by time for its name

Comparisons sit where rotary positions turn slowly (the last 18 of 32 pairs at θ = 1e6), since what is
compared lies anywhere in the video.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nano import training_rows
from nano.training_rows import NAME, OTHER, PERIODS, TIME, WAVES, WIDTH
from vxl2_jax.config import LanguageConfig
from vxl2_jax.models import qwen2

Params = Any
HALF = 32  # rotary pairs of a head: dimensions i and i + 32 turn together
NEAR = np.arange(4, 12)  # pairs whose turn tells apart distances of a few to a few dozen tokens
AFTER = 1.5  # seconds by which a moment lies after its group's stamp, on average
COPY = 0.08  # a copied part comes out about as long as it went in


def init(key: jax.Array, config: LanguageConfig) -> Params:
    """Parameters as `qwen2.init` makes them, with the heads above written in."""
    params = jax.tree.map(np.array, qwen2.init(key, config))
    params["embed"] = training_rows.embedding()
    layers = params["layers"]
    layers["down"]["kernel"] *= 0.3
    parts = [[TIME, NAME, TIME, OTHER], [OTHER, NAME, TIME, OTHER], [TIME, NAME, NAME, OTHER],
             [TIME, NAME, NAME, OTHER], [TIME, NAME, OTHER, OTHER]]
    for layer, row in enumerate(parts):
        for head, part in enumerate(row):
            here = _columns(config, head)
            value = _value(part, 10 * layer + head, config.head_width)
            layers["value"]["kernel"][layer][:, here] = value
            layers["out"]["kernel"][layer][here] = COPY * value.T
    _write(layers, config, 0, 0, *_own_stamp())
    _write(layers, config, 1, 0, *_seen_before())
    for layer, head in ((2, 0), (3, 0), (3, 1)):
        _write(layers, config, layer, head, *_same_name())
    for layer, head in ((2, 1), (3, 2)):
        _write(layers, config, layer, head, *_same_time())
    return jax.tree.map(jnp.asarray, params)


def _columns(config: LanguageConfig, head: int) -> slice:
    return slice(head * config.head_width, (head + 1) * config.head_width)


def _write(layers: Params, config: LanguageConfig, layer: int, head: int, query: np.ndarray, key: np.ndarray) -> None:
    """Put [WIDTH, head_width] projections into a head, over a little of its random start."""
    for name, matrix in (("query", query), ("key", key)):
        columns = layers[name]["kernel"][layer][:, _columns(config, head)]
        columns[...] = 0.2 * columns + matrix


def _value(part: slice, seed: int, width: int) -> np.ndarray:
    """[WIDTH, head_width] orthonormal columns that take a part of the stream (or a random view of it)."""
    size = part.stop - part.start
    turn = np.linalg.qr(np.random.default_rng((8, seed)).normal(size=(max(size, width),) * 2))[0]
    full = np.zeros((WIDTH, width), np.float32)
    full[part] = turn[:size, :width] if size > width else np.eye(size, width)
    return full


def _blank() -> np.ndarray:
    return np.zeros((WIDTH, 2 * HALF), np.float32)


def _names_into(pairs: np.ndarray, gain: float) -> np.ndarray:
    """A random view of the name part, laid into the given rotary pairs."""
    places = np.concatenate([pairs, pairs + HALF])
    view = np.linalg.qr(np.random.default_rng(7).normal(size=(64, 64)))[0][:, : len(places)]
    matrix = _blank()
    matrix[NAME, places] = gain * (64 / len(places)) ** 0.5 * view
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
    names = _names_into(np.arange(20, 32), 1.0)
    waves, pairs = np.arange(4, 10), np.arange(14, 20)
    time = _times_into(waves, pairs, 1.6)
    return names + time, names - time


def _same_name() -> tuple[np.ndarray, np.ndarray]:
    names = _names_into(np.arange(17, 32), 1.0)
    return names, names


def _same_time() -> tuple[np.ndarray, np.ndarray]:
    # The shortest waves tell neighbouring groups apart: they get the slowest pairs.
    waves = np.arange(WAVES)
    return _times_into(waves, 31 - waves, 1.6, AFTER), _times_into(waves, 31 - waves, 1.6)
