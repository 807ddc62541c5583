"""Temporal grounding: when does a sentence happen in a video? R@1 at IoU .3, .5 and .7, and the mean IoU.

    python -m experiments.studies grounding --form charades_sta --annotations charades_sta_test.txt \\
        --videos Charades_v1_480 --train charades_sta_train.txt --mode bilevel --model BAAI/Video-XL-2
    python -m experiments.studies grounding --form qvhighlights --annotations highlight_val_release.jsonl --videos videos

Annotation files are those published; videos are anywhere below --videos, named after them. Two predictors: the span that
the response names, and the span of the chunks that the question attends to most (see vxl2_jax/evaluation/grounding.py).
Guesses for comparison: a random span of the mean length in --train (without it, of the sentences of this run), and the
whole video.

nano answers with a start, not with a span. It is asked in its own words, and its answer is taken as a span of a given
length:

    python -m experiments.synthetic grounding --form charades_sta --clips 20 --out runs/sta
    python -m experiments.studies grounding --form charades_sta --annotations runs/sta/charades_sta_test.txt \\
        --train runs/sta/charades_sta_train.txt --videos runs/sta/videos --template "When does {subject} first appear?" \\
        --said_s 10 --mode bilevel --out runs/sta-bilevel

The records are those of `vxl2_jax.evaluation.grounding_run`, in a folder in --records: a run resumes with the same
command and tries again videos that could not be watched; missing and broken videos are counted. --fraction, --said_s,
--train and --seed concern the report alone: with other values it is made from the same records.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import vxl2_jax as vxl2
from experiments.studies import runner
from experiments.studies.study import Result, Study, integer
from vxl2_jax.cli.options import progress
from vxl2_jax.evaluation import grounding, grounding_data, grounding_report, grounding_run
from vxl2_jax.evaluation.settings import MODES
from vxl2_jax.options import AskOptions, WatchOptions


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--form", required=True, choices=list(grounding_data.FORMATS), help="format of the annotations")
    add("--annotations", required=True, help="the annotation file")
    add("--videos", required=True, type=Path, help="folder with the videos, at any depth")
    add("--mode", choices=list(MODES), default="bilevel", help="dense; chunked pre-fill; bilevel: chunks chosen, too")
    add("--template", default=grounding.TEMPLATE, help="the question: {query}, or {subject} without the last word")
    add("--train", help="annotations of the training split, for the length of a random span")
    add("--limit", type=integer(1), help="only the first so many videos")
    add("--fraction", type=float, default=grounding.FRACTION, help="score of a chunk in the span, of the best one's")
    add("--said_s", type=float, help="seconds of a span of which a response names only the start")
    add("--fps", type=float, default=1.0, help="frames watched per second")
    add("--max_frames", type=integer(1), help="maximum number of frames")
    add("--block_size", type=integer(1), default=WatchOptions.block_size, help="groups per pre-fill block")
    add("--prev_blocks", type=integer(0), default=WatchOptions.prev_blocks, help="earlier blocks that a block sees")
    add("--compression", type=integer(1), default=WatchOptions.compression, help="visual tokens pooled into one")
    add("--chunk_size", type=integer(1), default=1, help="groups per chunk; attended spans consist of chunks")
    add("--top_k", type=integer(0), default=4, help="chunks chosen besides the first and the last")
    add("--relevance", default=AskOptions.relevance, help="how chunks are scored; see `vxl2 ask --help`")
    add("--max_new_tokens", type=integer(1), default=32, help="longest answer in tokens")
    add("--seed", type=int, default=0, help="of the bootstrap")


def run(args: argparse.Namespace) -> Result:
    """Answer and report."""
    if not 0 <= args.fraction <= 1 or args.fps <= 0 or (args.said_s or 0) < 0:
        raise vxl2.RequestError("--fraction must be from 0 to 1, --fps more than 0, and --said_s at least 0")
    moments, left_out = grounding_data.read_moments(args.form, args.annotations)
    items = grounding_data.group_by_video(moments, args.videos, args.limit)
    random_s, source = grounding_data.random_span_length(args.form, items, args.train)
    watch = {name: getattr(args, name) for name in ("fps", "max_frames", "block_size", "prev_blocks", "compression")}
    ask = {name: getattr(args, name) for name in ("relevance", "top_k", "chunk_size", "max_new_tokens")}
    watch |= {"prev_blocks": None} if args.mode == "dense" else {}
    ask |= {} if args.mode == "bilevel" else {"top_k": None}
    settings = grounding_run.GroundingRun(args.form, items, args.mode, args.template, watch, ask, left_out)
    about = {"study": "grounding", "model": args.model, **settings.settings}
    folder = runner.records_path(args.records, about).with_suffix("")
    with progress("grounding", "videos", quiet=False) as advance:
        grounding_run.evaluate(settings, lambda: vxl2.load(args.model), folder, progress=advance)
    spans = grounding_report.SpanOptions(args.fraction, args.said_s, round(random_s, 3), source, args.seed)
    report = grounding_report.summarise(folder, spans)
    draw = partial(grounding_report.draw, data=report) if report["moments"] else None
    return Result(report, grounding_report.as_markdown(report), draw)


STUDY = Study(__doc__, run, add_flags)
