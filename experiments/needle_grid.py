"""Needles in haystacks: is what a film shows once found and told, by the film's length and the needle's depth?

    python -m experiments.needle_grid --out runs/needles
    python -m experiments.needle_grid --out runs/needles --lengths 64,256,1024,4096 --seeds 16    # adds to what is there

A needle is one of nano's pictures, on screen for 8 seconds and never again; other pictures come and go all the time,
behind all of them runs real video. Depth 0 is the first seconds of a film, depth 100 its last. Four questions are asked
about each: "Is there a dog?", the same of a picture that is never shown (both must be right), "When does the dog first
appear?" and "What appears at 40 seconds?". Every film is written as an mp4, read back at one frame a second, watched
twice (dense and chunked pre-fill) and asked in three modes:

    dense     dense pre-fill, the whole cache dense
    chunked   chunk-based pre-fill, the whole cache dense
    bilevel   chunk-based pre-fill; --top_k chunks chosen, and whether the needle's was among them

A film holds as many needles as have room beside each other, each asked about by itself; --apart gives every needle a
film of its own, which takes longer and is the usual setting.

--films long.mp4 asks about films that are there instead (made by experiments.synthetic, the answers beside
them: long.json): all that they show once is a needle and counts at the nearest of --depths.

    python -m experiments.synthetic film --hours 2.8 --seed 7 --loop a.mp4 b.mp4 --out long.mp4 --answers long.json
    python -m experiments.needle_grid --films long.mp4 --chunk_size 4 --out runs/long

--out receives run.json (settings), rows.*.jsonl (a line per film, as it is done) and report.json, report.md, report.png.
A run that is cut off goes on with the same command; with more lengths or seeds it is added to. Frames are read, watched
and forgotten by strides, so that memory grows only by keys and values: see "peak_bytes", the most that a process has held
until a film was done (not the memory of an accelerator).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from rich.console import Console
from rich.progress import track

import vxl2_jax as vxl2
from experiments.studies import needle_report, needle_run
from experiments.studies.needle_run import Setting
from experiments.synthetic import clips
from vxl2_jax.evaluation import run_folder
from vxl2_jax.evaluation.settings import MODES
from vxl2_jax.generate import AskOptions

_OUT = flags.DEFINE_string("out", None, "Folder of this run, made, gone on with or added to.", required=True)
_MODEL = flags.DEFINE_string("model", "nano", "nano, or a checkpoint directory.")
_LENGTHS = flags.DEFINE_list("lengths", ["64", "128", "256", "512", "1024", "2048"], "Lengths of the films in seconds.")
_DEPTHS = flags.DEFINE_list("depths", [f"{depth:g}" for depth in Setting.depths], "Depths of the needles in percent.")
_SEEDS = flags.DEFINE_integer("seeds", 4, "Films per length and depth: seeds 0, 1, …", lower_bound=1)
_APART = flags.DEFINE_boolean("apart", Setting.apart, "One needle a film.")
_FILMS = flags.DEFINE_list("films", [], "Films that are there, in the place of --lengths and --seeds.")
_FOOTAGE = flags.DEFINE_enum("footage", Setting.footage, clips.FOOTAGE, "Real video behind the pictures; '': drawn.")
_RATE = flags.DEFINE_integer("rate", Setting.rate, "Frames per second of films made; one is watched.", lower_bound=1)
_MODES = flags.DEFINE_list("modes", list(MODES), f"Of {', '.join(MODES)}.")
_BLOCK_SIZE = flags.DEFINE_integer(
    "block_size", Setting.block_size, "Groups per pre-fill block, except in dense mode.", lower_bound=1
)
_PREV_BLOCKS = flags.DEFINE_integer(
    "prev_blocks", Setting.prev_blocks, "Earlier blocks a block sees whole.", lower_bound=0
)
_COMPRESSION = flags.DEFINE_integer(
    "compression", Setting.compression, "Visual tokens pooled into one in the sparse level.", lower_bound=1
)
_CHUNK_SIZE = flags.DEFINE_integer(
    "chunk_size", Setting.chunk_size, "Groups (of four frames) per chunk.", lower_bound=1
)
_TOP_K = flags.DEFINE_integer("top_k", Setting.top_k, "Chunks chosen beside the first and the last.", lower_bound=0)
_RELEVANCE = flags.DEFINE_string("relevance", Setting.relevance, "How chunks are scored; see `vxl2 ask --help`.")
_JSON = flags.DEFINE_boolean("json", False, "Print the report as one JSON object alone on standard output.")


def numbers(name: str, texts: Sequence[str], most: float) -> list[float]:
    """Ascending numbers of a flag. Raises RequestError."""
    try:
        found = sorted({float(text) for text in texts})
    except ValueError:
        raise vxl2.RequestError(f"--{name}: {','.join(texts)} are not numbers, as 10,50,90") from None
    if not found or not 0 <= found[0] <= found[-1] <= most:
        raise vxl2.RequestError(f"--{name}: give numbers from 0 to {most:g}, as 10,50,90")
    return found


def main(_) -> int:
    logging.set_verbosity(logging.WARNING)
    if not _MODES.value or set(_MODES.value) - set(MODES):
        raise vxl2.RequestError(f"--modes: give some of {', '.join(MODES)}, not {','.join(_MODES.value)}")
    own = (_APART, _FOOTAGE, _RATE, _BLOCK_SIZE, _PREV_BLOCKS, _COMPRESSION, _CHUNK_SIZE, _TOP_K, _RELEVANCE)
    setting = Setting(
        modes=tuple(mode for mode in MODES if mode in _MODES.value),
        depths=tuple(numbers("depths", _DEPTHS.value, 100)),
        **{flag.name: flag.value for flag in own},
    )
    if _FILMS.value:
        todo = needle_run.there([Path(path) for path in _FILMS.value], setting)
    else:
        lengths = [round(length) for length in numbers("lengths", _LENGTHS.value, 86400)]
        todo = needle_run.films(lengths, _SEEDS.value, setting)
    AskOptions(relevance=setting.relevance, top_k=setting.top_k, chunk_size=setting.chunk_size).check()
    out = Path(_OUT.value)
    run_folder.check_settings(out, dataclasses.asdict(setting))
    steps = needle_run.run(vxl2.load(_MODEL.value), todo, setting, out)
    for _ in track(steps, "films", total=len(todo), console=Console(stderr=True), transient=True):
        pass
    data = needle_report.write(out)
    print(json.dumps(data, indent=1) if _JSON.value else needle_report.as_markdown(data))
    return 0


if __name__ == "__main__":
    try:
        app.run(main)
    except vxl2.Vxl2Error as error:
        sys.exit(f"needle_grid: {error}")
