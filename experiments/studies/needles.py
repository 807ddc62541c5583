"""Needles in haystacks: is what a film shows once found and reported, by the film's length and the needle's depth?

A needle is one of nano's pictures, on screen for 8 seconds and never again; other pictures come and go all the time, with
real video in the background. Depth 0 is the start of a film, depth 100 its end. Four questions are asked about each
needle: "Is there a dog?", the same about a picture that is never shown (both must be correct), "When does the dog first
appear?" and "What appears at 40 seconds?". Each film is written as an mp4, read back at one frame per second, watched
twice (dense and chunked pre-fill) and asked in three modes:

    dense     dense pre-fill, the whole cache dense
    chunked   chunk-based pre-fill, the whole cache dense
    bilevel   chunk-based pre-fill; --top_k chunks chosen, and whether the needle's was among them

A film holds as many needles as fit, each asked about by itself; with --apart each needle has its own film, which takes
longer and is the usual setting. --films asks about existing films instead (made by `experiments.synthetic film` or `clip`,
with their answers in a .json beside them): everything that they show once is a needle, counted at the nearest of --depths.

    python -m experiments.synthetic film --hours 2.8 --seed 7 --loop a.mp4 b.mp4 --out long.mp4 --answers long.json
    python -m experiments.studies needles --films long.mp4 --chunk_size 4 --out runs/long

More lengths or seeds extend earlier records. Frames are read and watched by strides: memory grows only by keys and
values. "peak_bytes" is the peak resident memory of the process so far, without an accelerator's.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import vxl2_jax as vxl2
from experiments.studies import films, judging, needle_report, runner
from experiments.studies.judging import Asked
from experiments.studies.study import Result, Study, integer, listed
from experiments.synthetic import clips, haystacks
from vxl2_jax.cache.pooling import check_compression
from vxl2_jax.evaluation.settings import MODES
from vxl2_jax.generate import AskOptions

LENGTHS = [64, 128, 256, 512, 1024, 2048]
MAX_NEW_TOKENS = 8
DEPTHS = [float(depth) for depth in range(0, 101, 10)]
NUMBERS = {
    "rate": (2, 1, "frames per second of the films that are made; one is watched"),
    "block_size": (4, 1, "groups per pre-fill block, except in dense mode"),
    "prev_blocks": (3, 0, "earlier blocks that a block sees"),
    "compression": (4, 1, "visual tokens pooled into one in the sparse level"),
    "chunk_size": (2, 1, "groups of four frames per chunk"),
    "top_k": (4, 0, "chunks chosen besides the first and the last"),
}
"""Flag → (default, minimum, help)."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--lengths", type=listed(integer(1)), default=LENGTHS, help="lengths of the films in seconds")
    add("--seeds", type=integer(1), default=4, help="films per length and depth: seeds 0, 1, …")
    add("--depths", type=listed(float), default=DEPTHS, help="depths of the needles in percent")
    add("--films", type=listed(Path), help="existing films, instead of --lengths and --seeds")
    add("--apart", action="store_true", help="one needle per film")
    add("--footage", choices=clips.FOOTAGE, default="test", help="real video in the background; '': drawn")
    add("--modes", type=listed(str), default=list(MODES), help="of dense, chunked, bilevel")
    for name, (default, least, text) in NUMBERS.items():
        add(f"--{name}", type=integer(least), default=default, help=text)
    add("--relevance", default="attention", help="how chunks are scored; see `vxl2 ask --help`")


def run(args: argparse.Namespace) -> Result:
    """Answer, judge and report."""
    if unknown := set(args.modes) - set(MODES):
        raise vxl2.RequestError(f"--modes: unknown {min(unknown)!r}; choose some of {', '.join(MODES)}")
    if not all(0 <= depth <= 100 for depth in args.depths):
        raise vxl2.RequestError("--depths: give numbers from 0 to 100, as 10,50,90")
    AskOptions(relevance=args.relevance, top_k=args.top_k, chunk_size=args.chunk_size).check()
    modes, depths = [mode for mode in MODES if mode in args.modes], sorted(set(args.depths))
    settings: dict[str, Any] = {"modes": modes, "depths": depths, "apart": args.apart, "footage": args.footage}
    settings |= {name: getattr(args, name) for name in (*NUMBERS, "relevance")} | {"form": films.FORM}
    todo = (
        films.existing(args.films, depths)
        if args.films
        else films.drawn(args.lengths, args.seeds, depths, apart=args.apart)
    )
    model = vxl2.load(args.model)
    check_compression(args.compression, model.config.visual_tokens)
    settings["model_hash"] = model.fingerprint
    with tempfile.TemporaryDirectory() as scratch:
        answer = partial(answered, model, settings, Path(scratch))
        found = runner.run(args.records, {"study": "needles", **settings}, todo, answer, keep_failures=True)
    name = Path(model.name).name
    report = {"settings": settings, "made_with": {"model": name, "cores": os.cpu_count()}}
    report |= needle_report.summarise(found)
    draw = partial(needle_report.draw, data=report, title=f"needles, {name}") if report["modes"] else None
    return Result(report, needle_report.as_markdown(report), draw)


def answered(model: vxl2.Model, settings: dict[str, Any], scratch: Path, film: films.Film) -> runner.Record:
    """The record of a film: its questions by label (a needle's depth and the kind), and the answers in all modes, judged.

    Per question, known: whether it can be said in the vocabulary; sayable: whether its answer can, too; chance: the
    probability that chunks at random include one that shows the needle.
    """
    start, size = time.perf_counter(), settings["chunk_size"]
    path, needled = films.prepare(film, scratch, footage=settings["footage"], rate=settings["rate"])
    asked = [Asked(f"{one.needle.depth} {one.kind}", one.question) for one in needled]
    spent, found, memory = {"render": time.perf_counter() - start, "watch": 0.0, "ask": 0.0}, {}, None
    for prev_blocks, modes in ((None, ("dense",)), (settings["prev_blocks"], ("chunked", "bilevel"))):
        wanted = [mode for mode in modes if mode in settings["modes"]]
        if not wanted:
            continue
        memory = None  # otherwise it stays resident while the film is watched again
        start = time.perf_counter()
        options = {"block_size": settings["block_size"], "compression": settings["compression"]}
        memory = model.watch(path, prev_blocks=prev_blocks, **options)
        watched = time.perf_counter()
        for mode in wanted:
            top_k = settings["top_k"] if mode == "bilevel" else None
            found[mode] = judging.ask(
                model,
                memory,
                asked,
                top_k=top_k,
                relevance=settings["relevance"],
                chunk_size=size,
                batch=len(haystacks.KINDS),  # batches of one size need one executable
                max_new_tokens=MAX_NEW_TOKENS,
            )
            chunks = found[mode]["chunks"]
            found[mode]["chance"] = [chance(question, size, chunks, settings["top_k"]) for _, question in asked]
        spent["watch"] += watched - start
        spent["ask"] += time.perf_counter() - watched
    known = [knows(model, question.question) for _, question in asked]
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return judging.record_of(asked, found) | {
        "seconds": film.seconds,
        "frames": memory.frames,
        "tokens": memory.layout.length,
        "known": known,
        "sayable": [each and knows(model, one.question.answer) for each, one in zip(known, asked, strict=True)],
        "spent_s": {stage: round(value, 3) for stage, value in spent.items()},
        "peak_bytes": kilobytes * (1 if sys.platform == "darwin" else 1024),
    }


def chance(question: Any, chunk_size: int, chunks: int, top_k: int) -> float:
    """The probability that the first, the last and `top_k` chunks at random include one that shows the needle."""
    shown = judging.evidence_of(question, chunk_size, chunks)
    if not shown or min(shown[0]) == 1 or max(shown[0]) == chunks:
        return 1.0
    return at_random(len(shown[0]), top_k, chunks - 2)


def at_random(shown: int, top_k: int, chunks: int) -> float:
    """The probability that `top_k` of `chunks`, chosen at random, include at least one of the `shown` ones."""
    top_k = min(top_k, chunks)
    return 1 - math.comb(chunks - shown, top_k) / math.comb(chunks, top_k)


def knows(model: vxl2.Model, text: str) -> bool:
    """Whether all whole numbers in a text are in the model's vocabulary."""
    back = model.tokenizer.decode(model.tokenizer.encode(text)).split()
    return all(number in back for number in text.rstrip("?").split() if number.isdigit())


STUDY = Study(__doc__, run, add_flags)
