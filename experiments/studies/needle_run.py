"""Watching haystacks and asking about their needles: a row per film goes into the run's folder.

A run may be cut off, gone on with, and added to: lengths and seeds are no part of what must stay alike.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import vxl2_jax as vxl2
from experiments.studies.needles import judge
from experiments.synthetic import encode, haystacks
from vxl2_jax.cache.pooling import check_compression
from vxl2_jax.evaluation import run_folder, settings
from vxl2_jax.storage import jsonl

SHORTEST = 2 * haystacks.NEEDLE_S
_FORM = 1  # of the films: with another number the same seed makes others
_AT_ONCE = len(haystacks.KINDS)  # questions; batches of one size need one executable
_MOST_WORDS = 8


@dataclass(frozen=True)
class Setting:
    """What must be alike in all rows of a folder.

    depths: percent, ascending; apart: one needle a film; footage, rate: of the films made, see `clips.Scene`, in frames
    per second; block_size, prev_blocks: of chunk-based pre-filling; the others as in `Model.ask`, for the mode "bilevel".
    """

    modes: tuple[str, ...] = tuple(settings.MODES)
    depths: tuple[float, ...] = tuple(float(depth) for depth in range(0, 101, 10))
    apart: bool = False
    footage: str = "test"
    rate: int = 2
    block_size: int = 4
    prev_blocks: int = 3
    compression: int = 4
    chunk_size: int = 2
    top_k: int = 4
    relevance: str = "attention"
    form: int = _FORM


@dataclass(frozen=True)
class Film:
    """What is watched: a film to be made of a seed, or one that is there (`path`) with its needles. name: its row's."""

    name: str
    seconds: int
    seed: int = 0
    part: int = 0
    depths: tuple[float, ...] = ()
    path: Path | None = None
    needles: tuple[haystacks.Needle, ...] = ()


def films(lengths: Sequence[int], seeds: int, setting: Setting) -> list[Film]:
    """All films of a grid, the short ones first. Raises RequestError for a length that is too short."""
    if min(lengths) < SHORTEST:
        raise vxl2.RequestError(f"a film of {min(lengths)} seconds is too short for needles; give at least {SHORTEST}")
    return [
        Film(f"{seconds}s-{seed}-{part}", seconds, seed, part, own)
        for seconds in sorted(lengths)
        for seed in range(seeds)
        for part, own in enumerate(haystacks.share_out(setting.depths, seconds, apart=setting.apart))
    ]


def there(paths: Sequence[Path], setting: Setting) -> list[Film]:
    """Films that are there, by their needles.

    Raises RequestError for two of one name, since a row is known by it, for one without answers of
    experiments.synthetic, and for one without needles.
    """
    name, count = Counter(path.name for path in paths).most_common(1)[0]
    if count > 1:
        raise vxl2.RequestError(
            f"{name}: {count} films have this name, which tells their rows apart; rename all but one"
        )
    return [_there(path, setting) for path in paths]


def _there(path: Path, setting: Setting) -> Film:
    answers = path.with_suffix(".json")
    try:
        content = json.loads(answers.read_text())
        seconds = round(content["seconds"])
        rng = np.random.default_rng([setting.form, seconds])
        needles = haystacks.needles_of(rng, content["events"], content["seconds"], setting.depths)
    except OSError as error:
        raise vxl2.RequestError(
            f"{answers}: cannot be read ({error.strerror}); put the film's answers there"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise vxl2.RequestError(f"{answers}: no answers of experiments.synthetic ({error!r})") from error
    if not needles:
        raise vxl2.RequestError(f"{path}: shows nothing just once, or all pictures there are; make another film")
    return Film(path.name, seconds, path=path, needles=needles)


def run(model: vxl2.Model, todo: Sequence[Film], setting: Setting, out: Path) -> Iterator[None]:
    """Answer what is missing in the folder, a row a film, and yield after each; a film that cannot be watched gets a row
    with its error, and is tried again the next time.

    Raises RequestError for a folder of other settings, if another process is writing it, and for a compression out of the
    model's range.
    """
    check_compression(setting.compression, model.config.visual_tokens)  # the folder is not yet claimed for it
    wanted = dataclasses.asdict(setting) | {"model_hash": model.fingerprint}
    with run_folder.open_records(out, 0, 1) as file, tempfile.TemporaryDirectory() as scratch:
        run_folder.claim(out, wanted, {"model": Path(model.name).name, "cores": os.cpu_count()})
        done = run_folder.read_records(out)
        for film in todo:
            if "answers" not in done.get(film.name, {}):
                row = {"index": film.seconds, "video": film.name, "seconds": film.seconds}
                try:
                    jsonl.append(file, row | answered(model, film, setting, Path(scratch)))
                except (vxl2.VideoError, vxl2.TooLongError) as error:
                    jsonl.append(file, row | {"error": str(error)})
            yield


def answered(model: vxl2.Model, film: Film, setting: Setting, scratch: Path) -> dict:
    """What a row says of a film that was watched: every answer of every mode, and the seconds it took.

    peak_bytes: the most memory that the process has held so far, with this film or one before it.
    """
    begun = time.perf_counter()
    path, asked = _prepared(film, setting, scratch)
    spent = {"render": time.perf_counter() - begun, "watch": 0.0, "ask": 0.0}
    found: list[dict] = []
    for prev_blocks, own in ((None, ("dense",)), (setting.prev_blocks, ("chunked", "bilevel"))):
        wanted = [mode for mode in own if mode in setting.modes]
        if not wanted:
            continue
        begun = time.perf_counter()
        memory = model.watch(
            path, block_size=setting.block_size, prev_blocks=prev_blocks, compression=setting.compression
        )
        watched = time.perf_counter()
        for mode in wanted:
            found += _asked(model, memory, asked, mode, setting)
        spent["watch"] += watched - begun
        spent["ask"] += time.perf_counter() - watched
        size = {"frames": memory.frames, "tokens": memory.layout.length}
        del memory  # or it would stand beside the next one
    return {
        "answers": found,
        **size,
        "spent_s": {stage: round(value, 3) for stage, value in spent.items()},
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def _prepared(film: Film, setting: Setting, scratch: Path) -> tuple[Path, list[haystacks.Asked]]:
    """The film's file, made in `scratch` if need be, and the questions about its needles."""
    rng = np.random.default_rng([setting.form, film.seconds, film.seed, film.part])
    if film.path is None:
        clip, needles = haystacks.draw(rng, seconds=film.seconds, depths=film.depths, footage=setting.footage)
        path = scratch / "film.mp4"
        encode.render_mp4(clip, path, rate=setting.rate)
    else:
        path, needles = film.path, film.needles
    return path, [asked for needle in needles for asked in haystacks.ask(rng, needle)]


def _asked(
    model: vxl2.Model, memory: vxl2.VideoMemory, asked: Sequence[haystacks.Asked], mode: str, setting: Setting
) -> Iterator[dict]:
    """Every answer of a mode."""
    options: dict = {"relevance": "recent", "top_k": None}  # everything dense: a scorer that costs nothing
    if mode == "bilevel":
        options = {"relevance": setting.relevance, "top_k": setting.top_k}
    options |= {"chunk_size": setting.chunk_size, "max_new_tokens": _MOST_WORDS}
    for first in range(0, len(asked), _AT_ONCE):
        batch = asked[first : first + _AT_ONCE]
        answers = model.ask(memory, [one.question.question for one in batch], **options)
        for one, answer in zip(batch, answers, strict=True):
            known = knows(model, one.question.question)
            yield {
                "mode": mode,
                **judge(one, answer, setting.chunk_size, setting.top_k),
                "known": known,
                "sayable": known and knows(model, one.question.answer),
            }


def knows(model: vxl2.Model, text: str) -> bool:
    """Whether all whole numbers of a text come back from the model's vocabulary."""
    back = model.tokenizer.decode(model.tokenizer.encode(text)).split()
    return all(number in back for number in text.rstrip("?").split() if number.isdigit())
