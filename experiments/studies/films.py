"""The films of the study `needles`: films to be made from a seed, and existing films with their answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.synthetic import encode, haystacks
from vxl2_jax import RequestError

SHORTEST = 2 * haystacks.NEEDLE_S
FORM = 1  # of the films: with another number the same seed makes others


@dataclass(frozen=True)
class Film:
    """A film.

    Attributes:
      seconds: its length.
      part: which of the films with one seed, that share the depths.
      depths: of its needles, in percent.
      path, needles: of an existing film.
    """

    seconds: int
    seed: int = 0
    part: int = 0
    depths: tuple[float, ...] = ()
    path: Path | None = None
    needles: tuple[haystacks.Needle, ...] = ()


def drawn(lengths: Sequence[int], seeds: int, depths: Sequence[float], *, apart: bool = False) -> dict[str, Film]:
    """All films of a grid by name, the short ones first; apart: one needle per film.

    Raises RequestError for a length that is too short.
    """
    if min(lengths) < SHORTEST:
        raise RequestError(f"a film of {min(lengths)} seconds is too short for needles; give at least {SHORTEST}")
    return {
        f"{seconds}s-{seed}-{part}": Film(seconds, seed, part, own)
        for seconds in sorted(set(lengths))
        for seed in range(seeds)
        for part, own in enumerate(haystacks.share_out(depths, seconds, apart=apart))
    }


def existing(paths: Sequence[Path], depths: Sequence[float]) -> dict[str, Film]:
    """Existing films by name and hash of their answers, with all that they show once as needles at the nearest `depths`.

    Raises RequestError for two films with the same name, for one without the answers of `experiments.synthetic film`
    or `clip`, and for one without needles.
    """
    names = [path.name for path in paths]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RequestError(f"{twice[0]}: {names.count(twice[0])} films have this name; rename all but one")
    return dict(_existing(path, depths) for path in paths)


def _existing(path: Path, depths: Sequence[float]) -> tuple[str, Film]:
    answers = path.with_suffix(".json")
    try:
        text = answers.read_text()
        content = json.loads(text)
        seconds = round(content["seconds"])
        rng = np.random.default_rng([FORM, seconds])
        needles = haystacks.needles_of(rng, content["events"], content["seconds"], depths)
    except OSError as error:
        raise RequestError(f"{answers}: cannot be read ({error.strerror}); put the film's answers there") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{answers}: no answers of experiments.synthetic film or clip ({error!r})") from error
    if not needles:
        raise RequestError(f"{path}: shows nothing just once, or all pictures there are; make another film")
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]  # another film may later have the same name
    return f"{path.name}-{digest}", Film(seconds, path=path, needles=needles)


def prepare(film: Film, scratch: Path, *, footage: str, rate: int) -> tuple[Path, list[haystacks.Asked]]:
    """The film's file, made in `scratch` at `rate` frames per second unless it exists, and the questions about it."""
    rng = np.random.default_rng([FORM, film.seconds, film.seed, film.part])
    path, needles = film.path, film.needles
    if path is None:
        clip, needles = haystacks.draw(rng, seconds=film.seconds, depths=film.depths, footage=footage)
        path = scratch / "film.mp4"
        encode.render_mp4(clip, path, rate=rate)
    return path, [asked for needle in needles for asked in haystacks.ask(rng, needle)]
