"""`vxl2 eval`: run a benchmark, report on runs, compare two of them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vxl2_jax.cli import options
from vxl2_jax.cli.options import ASKING, WATCHING, given, or_none, progress
from vxl2_jax.errors import RequestError

_EXAMPLES = """examples:
  vxl2 eval --benchmark mlvu --data MLVU --mode dense --out runs/mlvu-dense --model BAAI/Video-XL-2
  vxl2 eval --benchmark mlvu --data MLVU --mode bilevel --out runs/mlvu-bilevel --model BAAI/Video-XL-2
  vxl2 eval compare runs/mlvu-dense runs/mlvu-bilevel --out runs/mlvu-bilevel
  vxl2 eval report runs/mlvu-dense

  # the chunks that the original's own files choose, question by question: a file, or a folder of them
  vxl2 eval --benchmark mlvu --data MLVU --mode bilevel --relevance oracle:selected_infos/mlvu.json --out runs/mlvu-oracle

  # on two machines that share a folder, or with two accelerators: each takes half of the videos
  vxl2 eval --benchmark lvbench --data LVBench --mode chunked --out runs/lvbench --process 0 --processes 2
  vxl2 eval --benchmark lvbench --data LVBench --mode chunked --out runs/lvbench --process 1 --processes 2

Annotations are found in --data as the benchmark or its lmms-eval task publishes them (JSON, JSONL, or parquet, which needs
the package pyarrow), videos anywhere below it by their names. Frame limits, blocks and answer lengths are those of the
original's runs for the benchmark and the mode; a flag replaces one of them. Each video is watched once, and asked all its
questions, at most 16 at a time.

--out receives run.json (settings), rows.*.jsonl (a line per video, as it is answered), and at the end report.json,
report.md and report.png. If a run is cut off, the same command goes on where it was, and tries again what could not be
watched. The exit code is 0 though videos are missing or broken: the report counts them."""

_JSON = "print one JSON document, alone, on standard output"


def add(commands) -> None:
    parser = commands.add_parser(
        "eval",
        formatter_class=options.Help,
        epilog=_EXAMPLES,
        help="run a benchmark, report on runs, compare two",
        usage="vxl2 eval --benchmark NAME --data DIR --mode MODE --out DIR [options]\n"
        "       vxl2 eval report RUN... [--json]\n       vxl2 eval compare A B [--out DIR] [--json]",
        description="Run a benchmark as the original's evaluation does: MLVU, Video-MME, LongVideoBench or LVBench.",
    )
    parser.set_defaults(run=run, interrupted="the same command goes on where it was")
    group = parser.add_argument_group("what is run")
    # evaluation.BENCHMARKS and MODES, spelt out so that --help need not import them; a test keeps them equal.
    group.add_argument(
        "--benchmark", choices=("mlvu", "video_mme", "longvideobench", "lvbench"), help="which benchmark"
    )
    group.add_argument(
        "--mode",
        choices=("dense", "chunked", "bilevel"),
        help="dense: everything; chunked: chunk-based pre-filling; bilevel: that, and only chosen chunks loaded dense",
    )
    group.add_argument("--data", type=Path, metavar="DIR", help="folder of annotations and videos")
    group.add_argument("--out", type=Path, metavar="DIR", help="folder of this run, made or gone on with")
    group.add_argument(
        "--annotations", type=Path, nargs="+", metavar="FILE", help="annotation files, where --data has several"
    )
    group.add_argument("--videos", type=Path, metavar="DIR", help="folder of videos, where they are not in --data")
    group.add_argument(
        "--subtitles",
        type=Path,
        metavar="DIR",
        help="video_mme: ask with subtitles, from files VIDEO.srt in this folder",
    )
    group.add_argument("--limit", type=int, metavar="N", help="only the first N videos")
    group.add_argument(
        "--process",
        type=int,
        metavar="I",
        help="which part of the videos to do, from 0 (default, with --processes: as JAX counts)",
    )
    group.add_argument("--processes", type=int, metavar="N", help="into how many parts the videos are divided")
    options.add_model(parser)
    _add_settings(parser)
    _add_output(parser)
    parts = parser.add_subparsers(dest="part", metavar="", title="of runs there are", prog="vxl2 eval")
    report = parts.add_parser(
        "report",
        formatter_class=options.Help,
        help="write the reports of runs anew, and print them",
        description="Write the reports of runs anew from their rows, and print them. A run may still be under way.",
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    report.set_defaults(run=_report)
    compare = parts.add_parser(
        "compare",
        formatter_class=options.Help,
        help="compare two runs question by question",
        description="Compare two runs over the questions that both answered: the difference with its intervals, McNemar's "
        "exact test, and the change by kind of question.",
    )
    compare.add_argument("a", type=Path, metavar="A", help="folder of a run, or one of its files rows.*.jsonl")
    compare.add_argument("b", type=Path, metavar="B", help="the run that is compared with it")
    compare.add_argument(
        "--out",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="write compare.json, compare.md and compare.png into this folder",
    )
    compare.set_defaults(run=_compare)
    for part in (report, compare):
        part.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=_JSON)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Options of watching and asking. What is not given is as it was released, so none of them has a default here."""
    group = parser.add_argument_group("settings", "left out, they are as released for the benchmark and the mode")

    def add(name: str, kind, letter: str, told: str) -> None:
        group.add_argument(name, type=kind, default=argparse.SUPPRESS, metavar=letter, help=told)

    add("--fps", float, "R", "frames looked at per second")
    add("--max-frames", or_none("none"), "N", "look at no more than N frames; none: no limit")
    add("--max-fps", float, "R", "how densely short videos are looked at")
    add("--block-size", int, "B", "groups of 4 frames in a block of chunk-based pre-filling")
    add("--prev-blocks", or_none("none"), "P", "earlier blocks a block sees whole; none: plain dense pre-filling")
    add("--compression", int, "C", "visual tokens pooled into one in sparse chunks")
    add(
        "--relevance",
        str,
        "NAME",
        "how chunks are ranked: attention, mass, uniform, random, recent, or chosen: oracle:FILE (or a folder), with its own sizes",
    )
    add("--top-k", or_none("all"), "K", "interior chunks loaded dense; all: the whole memory")
    add("--chunk-size", int, "G", "groups per chunk")
    add("--max-new-tokens", int, "N", "longest answer")
    add("--temperature", float, "T", "0 is greedy")
    add("--top-p", float, "P", "draw from the likeliest tokens of this total probability")
    add("--seed", int, "S", "of drawn tokens and of --relevance random")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help=_JSON)
    group.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> None:
    """`vxl2 eval`."""
    if missing := [f"--{name}" for name in ("benchmark", "mode", "data", "out") if getattr(args, name) is None]:
        raise RequestError(f"eval needs {', '.join(missing)}; see vxl2 eval --help")
    if args.subtitles and args.benchmark != "video_mme":
        raise RequestError(
            f"--subtitles is for video_mme: {args.benchmark} is asked without them, as the original does"
        )
    if args.limit is not None and args.limit < 1:
        raise RequestError(f"--limit must be at least 1, not {args.limit}")
    from vxl2_jax import evaluation
    from vxl2_jax.evaluation import data, runner
    from vxl2_jax.evaluation.report import summarise
    from vxl2_jax.evaluation.settings import released

    benchmark = evaluation.named(args.benchmark)
    items = data.read(
        benchmark,
        args.data,
        annotations=args.annotations or (),
        videos=args.videos,
        subtitle_folder=args.subtitles,
        limit=args.limit,
    )
    watch, ask = released(args.benchmark, args.mode)
    wanted = runner.BenchmarkRun(
        benchmark,
        items,
        args.mode,
        watch | given(args, WATCHING),
        ask | given(args, ASKING),
        args.subtitles is not None,
    )
    with progress("evaluating", "videos", args.quiet) as advance:
        runner.evaluate(
            wanted,
            lambda: options.load_model(args),
            args.out,
            process=args.process,
            processes=args.processes,
            progress=advance,
        )
    if summarise(args.out)["complete"]:
        _told([args.out], args.json)
    elif args.json:
        print(json.dumps(summarise(args.out), indent=1))
    else:
        print(f"{args.out}: this part is done; the last one writes the report")


def _report(args: argparse.Namespace) -> None:
    """`vxl2 eval report`."""
    _told(args.runs, args.json)


def _told(runs: list[Path], as_json: bool) -> None:
    """Write reports, and print them."""
    from vxl2_jax.evaluation import report

    found = [report.write(place) for place in runs]
    if as_json:
        print(json.dumps(found[0] if len(found) == 1 else found, indent=1))
    else:
        print("\n".join(map(report.as_markdown, found)), end="")
    for place, data in zip(runs, found, strict=True):
        if data["failures"]:
            print(
                f"vxl2: {place}: {len(data['failures'])} videos could not be watched: see report.md there",
                file=sys.stderr,
            )


def _compare(args: argparse.Namespace) -> None:
    """`vxl2 eval compare`."""
    from vxl2_jax.evaluation import compare

    data = compare.compare(compare.read(args.a), compare.read(args.b))
    if args.out:
        compare.write(args.out, data)
    print(json.dumps(data, indent=1) if args.json else compare.as_markdown(data), end="\n" if args.json else "")
