"""How many questions does nano answer correctly, on freshly rendered videos that go through the video reader?

    python -m experiments.studies nano --questions 400 --seed 7 --out experiments/results/nano/seed7

--questions are asked about clips of each range of lengths (--ranges, in seconds, at one frame per second), with real
footage in the background that training did not use. Each clip is rendered to an mp4 as `experiments.synthetic clip` does, read back,
watched twice (dense and chunked pre-fill) and asked in these modes:

    dense             dense pre-fill, the whole cache dense
    chunked           chunk-based pre-fill, the whole cache dense
    bilevel_62        chunk-based pre-fill; first and last chunk dense, of the others as many, by attention, as fit
                      into 62 % of the dense cache's bytes; the rest pooled
    bilevel_62_random the same with as many chunks at random
    …                 and so on for each of --shares; bilevel_62_by2: two visual tokens pooled into one, not eight

In clips of 32 seconds, ends, prefix and timestamps take a quarter of the bytes and more: a share that clips of a range's
mean length cannot keep is left out there. In shorter clips more tokens are pooled into one, as many as it takes.

cache_ratio: key/value bytes loaded over those of the dense caches. chance: the accuracy of the best guess without the
video, in percent. inside: questions whose evidence (the events that the answer rests on) lies in chunks chosen by score.
`python -m experiments.studies.nano_tables` makes the tables of docs/results/nano.md from the reports of several seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import vxl2_jax as vxl2
from experiments.studies import judging, memories, nano_tables, runner, statistics
from experiments.studies.judging import Asked
from experiments.studies.study import Result, Study, add_clip_flags, integer, listed
from experiments.synthetic import clips, pictures
from experiments.synthetic.blind_guesses import chance_levels
from experiments.synthetic.encode import render_mp4
from experiments.synthetic.questions import TYPES, questions
from vxl2_jax import encode
from vxl2_jax.cache.pooling import check_compression
from vxl2_jax.layout import Layout

RATE = 4  # frames per second of the rendered files
SETTINGS = (
    "seed",
    "questions",
    "per_clip",
    "footage",
    "block_size",
    "prev_blocks",
    "chunk_size",
    "compression",
    "shares",
)

Range = tuple[int, int]
"""Lengths of clips in seconds: (shortest, longest)."""


class Drawn(NamedTuple):
    """A clip of a range, its questions, and the seed of the chunks at random."""

    seconds: Range
    clip: clips.Clip
    asked: list[Asked]
    seed: int


class Share(NamedTuple):
    """A bi-level mode: at most this percentage of the dense cache's bytes; visual tokens pooled into one elsewhere."""

    mode: str
    percent: int
    compression: int


def parse_share(text: str, compression: int) -> Share:
    """ "62" or "62:2" → Share; `compression` unless it is given. Raises RequestError for anything else."""
    percent, colon, by = text.partition(":")
    if not percent.isdecimal() or colon and not by.isdecimal():
        raise vxl2.RequestError(f"--shares: {text!r} is not percent or percent:compression, as 62:2")
    share = Share("bilevel_" + text.replace(":", "_by"), int(percent), int(by or compression))
    if share.compression < 2:
        raise vxl2.RequestError(f"--shares: {text!r} pools nothing; give a compression of 2 or more")
    if not 0 < share.percent <= 100:
        raise vxl2.RequestError(f"--shares: {share.percent} is not from 1 to 100 percent")
    return share


def parse_range(text: str) -> Range:
    """ "32-64" → (32, 64). Raises RequestError for anything else, and for lengths outside 32 to 1,024 seconds."""
    shortest, _, longest = text.partition("-")
    if not shortest.isdecimal() or not longest.isdecimal():
        raise vxl2.RequestError(f"--ranges: {text!r} is not shortest-longest, as 32-64")
    if not 32 <= int(shortest) <= int(longest) <= 1024:
        raise vxl2.RequestError(f"--ranges: {text} is not within 32-1024 seconds")
    return int(shortest), int(longest)


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_clip_flags(parser, seed=7)
    add = parser.add_argument
    add("--questions", type=integer(1), default=400, help="questions per range")
    add("--per_clip", type=integer(1), default=14, help="questions about each clip")
    add("--ranges", type=listed(str), default=["32-64", "128-256"], help="lengths of clips, as 32-64,128-256")
    add("--shares", type=listed(str), default=["62", "62:2", "35"], help="percent of bytes, or percent:compression")
    add("--block_size", type=integer(1), default=4, help="groups per pre-fill block, except in mode dense")
    add("--prev_blocks", type=integer(0), default=3, help="earlier blocks that a block sees")
    add("--chunk_size", type=integer(1), default=1, help="groups per chunk")
    add("--compression", type=integer(1), default=8, help="visual tokens pooled into one in sparse chunks")


def run(args: argparse.Namespace) -> Result:
    """Answer, judge and report."""
    ranges = sorted({parse_range(text) for text in args.ranges})
    shares = [parse_share(text, args.compression) for text in args.shares]
    model = vxl2.load(args.model)
    settings = {name: getattr(args, name) for name in SETTINGS}
    about = {"model": model.name, "fingerprint": model.fingerprint, "settings": settings}
    drawn = {seconds: draw_clips(args, seconds) for seconds in ranges}
    kept = {seconds: shares_for(model, shares, args.chunk_size, seconds) for seconds in ranges}
    with tempfile.TemporaryDirectory() as folder:

        def answer(one: Drawn) -> runner.Record:
            return judged(model, args, one, kept[one.seconds], Path(folder, "clip.mp4"))

        every = {key: one for found in drawn.values() for key, one in found.items()}
        records = runner.run(args.records, {"study": "nano", **about}, every, answer)
    report = {
        f"{seconds[0]}-{seconds[1]}": report_of({key: records[key] for key in found}, chance_levels(0, 2000, seconds))
        for seconds, found in drawn.items()
    }
    data = about | {"ranges": report}
    return Result(data, nano_tables.tables([data]))


def draw_clips(args: argparse.Namespace, seconds: Range) -> dict[str, Drawn]:
    """The clips of a range, drawn one after another from one random stream."""
    rng, names, found = np.random.default_rng([args.seed, *seconds, 20261121]), pictures.load()[0], {}
    for first in range(0, args.questions, args.per_clip):
        length = int(rng.integers(seconds[0], seconds[1] + 1))
        clip = clips.draw_clip(rng, seconds=length, names=names, footage=args.footage)
        asked = judging.by_type(questions(rng, clip, min(args.per_clip, args.questions - first)))
        found[f"{seconds[0]}-{seconds[1]}/{len(found)}"] = Drawn(seconds, clip, asked, int(rng.integers(2**31)))
    return found


def shares_for(model: vxl2.Model, shares: Sequence[Share], chunk_size: int, seconds: Range) -> list[Share]:
    """The shares that clips of a range's mean length can keep."""
    layout, _ = encode.layout_of(model, [float(t) for t in range(0, sum(seconds) // 2, model.config.frames_per_group)])
    return [share for share in shares if _fits(layout, chunk_size, share, pooled_by(layout, chunk_size, share))]


def pooled_by(layout: Layout, chunk_size: int, share: Share) -> int:
    """A share's compression, or the least above it with which everything but the ends pooled fits, or the greatest.

    Raises RequestError for a compression of more tokens than there are.
    """
    check_compression(share.compression, layout.visual)
    every = range(share.compression, layout.visual + 1)
    return next((by for by in every if _fits(layout, chunk_size, share, by)), layout.visual)


def _fits(layout: Layout, chunk_size: int, share: Share, compression: int) -> bool:
    return 100 * layout.mixed_length(compression, chunk_size, interior=0) <= share.percent * layout.length


def judged(
    model: vxl2.Model, args: argparse.Namespace, drawn: Drawn, shares: Sequence[Share], video: Path
) -> runner.Record:
    """The record of a clip: its answers in every mode, judged. The clip is rendered to `video`."""
    render_mp4(drawn.clip, video, rate=RATE)
    rng, size = np.random.default_rng(drawn.seed), args.chunk_size
    dense = model.watch(video, prev_blocks=None)
    chunked = model.watch(video, block_size=args.block_size, prev_blocks=args.prev_blocks)
    found = {}

    def ask(mode: str, memory: vxl2.VideoMemory, top_k: int | None = None, relevance: Any = "attention") -> None:
        found[mode] = judging.ask(model, memory, drawn.asked, top_k=top_k, relevance=relevance, chunk_size=size)

    ask("dense", dense)
    ask("chunked", chunked)
    for share in shares:
        memory = chunked.with_compression(pooled_by(chunked.layout, size, share))
        room = memories.interior(memory, share.percent, size)
        ask(share.mode, memory, room)
        ask(f"{share.mode}_random", memory, room, [rng.random(memory.layout.chunks(size)) for _ in drawn.asked])
    return judging.record_of(drawn.asked, found)


def report_of(records: statistics.Records, chances: dict[str, float]) -> dict[str, Any]:
    """The marks of one range."""
    modes = list(next(iter(records.values()))["settings"])

    def difference(mode: str, other: str, inside: bool = False) -> dict[str, Any]:
        after, before = (statistics.values(records, name, inside=inside) for name in (mode, other))
        found = statistics.change(before, after, 2)
        return {name: found[name] for name in ("points", "interval", "questions") if name in found}

    differences = {}
    for mode in modes:
        if f"{mode}_random" in modes:
            differences[f"{mode} - dense"] = difference(mode, "dense")
            differences[f"{mode} - {mode}_random"] = difference(mode, f"{mode}_random")
            differences[f"{mode} - {mode}_random, inside"] = difference(mode, f"{mode}_random", inside=True)
    known = {name.split(",")[0]: round(100 * level, 1) for name, level in chances.items() if "known" in name}
    marks = {mode: marks_of(records, mode, chances) for mode in modes}
    return {"modes": marks, "differences": differences, "chance_knowing_the_names": known}


def marks_of(records: statistics.Records, mode: str, chances: dict[str, float]) -> dict[str, Any]:
    """The accuracy in one mode: of all questions, by type, and of those whose evidence lies inside."""

    def rate(**chosen: Any) -> dict[str, Any]:
        right = statistics.flat(statistics.values(records, mode, **chosen))
        return statistics.rate(right, 2) if right else {"questions": 0}

    rates = {kind: part for kind in TYPES if (part := rate(label=kind))["questions"]}
    by_type = {kind: part | {"chance": round(100 * chances[kind], 1)} for kind, part in rates.items()}
    ratio = round(statistics.percent_of(records, mode, "loaded", "dense") / 100, 4)
    return rate() | {"cache_ratio": ratio, "by_type": by_type, "inside": rate(inside=True)}


STUDY = Study(__doc__, run, add_flags)
