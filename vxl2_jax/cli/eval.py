"""`vxl2 eval`: run a benchmark, write reports of runs, compare two runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vxl2_jax import evaluation, hardware
from vxl2_jax.cli import options, workers
from vxl2_jax.cli.options import given, progress
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import choices
from vxl2_jax.evaluation.settings import MODES, released
from vxl2_jax.fleet import here
from vxl2_jax.options import AskOptions, WatchOptions
from vxl2_jax.text.typed import printable

_EXAMPLES = """examples:
  vxl2 eval --benchmark mlvu --data MLVU --mode dense --out runs/mlvu-dense --model BAAI/Video-XL-2
  vxl2 eval --benchmark mlvu --data MLVU --mode bilevel --out runs/mlvu-bilevel --model BAAI/Video-XL-2
  vxl2 eval compare runs/mlvu-dense runs/mlvu-bilevel --out runs/mlvu-bilevel
  vxl2 eval report runs/mlvu-dense

  # replay the chunks that the original's files select for each question: a file, or a folder of them
  vxl2 eval --benchmark mlvu --data MLVU --mode bilevel --relevance oracle:selected_infos/mlvu.json --out runs/mlvu-oracle

  # a worker on each accelerator of this machine
  vxl2 eval --benchmark lvbench --data LVBench --mode chunked --out runs/lvbench --workers auto

  # 2 to 16 workers on the Ray cluster that this machine is part of
  vxl2 eval --benchmark lvbench --data /shared/LVBench --mode chunked --out runs/lvbench --ray --workers 2:16

--data holds the annotations as the benchmark or its lmms-eval task publishes them (JSON, JSONL, or parquet, which needs
the package pyarrow), and the videos, found by name in any subfolder. Each video is watched once and asked all its
questions, in batches of at most 16.

--out receives run.json (settings), rows.*.jsonl (one line per video when it is answered), fleet.jsonl (what the workers
did), and at the end report.json, report.md and report.png. If a run is interrupted, the same command resumes, and
retries the videos that failed. Missing and broken videos do not change the exit code: the report counts them."""


def add(commands: Any, help: str) -> None:
    """Add the command, with its line in `vxl2 --help`, to the subparsers `commands`."""
    parser = commands.add_parser(
        "eval",
        formatter_class=options.Help,
        epilog=_EXAMPLES,
        help=help,
        usage="vxl2 eval --benchmark NAME --data DIR --mode MODE --out DIR [options]\n"
        "       vxl2 eval report RUN... [--json]\n       vxl2 eval compare A B [--out DIR] [--json]",
        description="Run a benchmark as the original's evaluation does: MLVU, Video-MME, LongVideoBench or LVBench.",
    )
    parser.set_defaults(run=run, interrupted="the same command resumes")
    _add_run(parser.add_argument_group("run"))
    options.add_model(parser)
    workers.add(parser)
    workers.add_memories(parser)
    note = "default: as released for the benchmark and the mode"
    options.add_options(parser, WatchOptions, "settings", description=note, defaults=False)
    options.add_options(parser, AskOptions, "settings", defaults=False)
    options.add_output(parser)
    _add_parts(parser.add_subparsers(dest="part", metavar="", title="existing runs", prog="vxl2 eval"))


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--benchmark", choices=tuple(evaluation.BENCHMARKS), help="the benchmark")
    group.add_argument(
        "--mode",
        choices=tuple(MODES),
        help="dense: plain pre-filling, whole cache; chunked: chunked pre-filling, whole cache; bilevel: chunked "
        "pre-filling, and only selected chunks loaded dense",
    )
    group.add_argument(
        "--answer",
        choices=choices.WAYS,
        help="generate: read a letter from the response, as the original does; likelihood: take the option whose text is "
        "the most likely answer, by mean log-probability per token (default: generate; for nano, which knows no letters, "
        "likelihood)",
    )
    group.add_argument("--data", type=options.path, metavar="DIR", help="folder of annotations and videos")
    group.add_argument("--out", type=options.path, metavar="DIR", help="folder of this run; created, or resumed")
    group.add_argument(
        "--annotations", type=options.path, nargs="+", metavar="FILE", help="annotation files, if --data has several"
    )
    group.add_argument("--videos", type=options.path, metavar="DIR", help="folder of videos, if not --data")
    group.add_argument(
        "--subtitles",
        type=options.path,
        metavar="DIR",
        help="video_mme: ask with subtitles, from files VIDEO.srt in DIR",
    )
    options.add_number(group, "limit", metavar="N", help="only the first N videos")


def _add_parts(parts: Any) -> None:
    report = parts.add_parser(
        "report",
        formatter_class=options.Help,
        help="write and print the reports of runs",
        description="Write the reports of runs again, and print them. A run may be unfinished.",
    )
    report.add_argument("runs", type=options.path, nargs="+", metavar="RUN", help="folder of a run")
    report.set_defaults(run=_report)
    compare = parts.add_parser(
        "compare",
        formatter_class=options.Help,
        help="compare two runs question by question",
        description="Compare two runs over the questions that both answered: the difference with its intervals, McNemar's "
        "exact test, and the change by kind of question.",
    )
    compare.add_argument("a", type=options.path, metavar="A", help="folder of a run, or one of its files rows.*.jsonl")
    compare.add_argument("b", type=options.path, metavar="B", help="the run to compare with A")
    compare.add_argument(
        "--out",
        type=options.path,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="write compare.json, compare.md and compare.png into this folder",
    )
    compare.set_defaults(run=_compare)
    for part in (report, compare):
        part.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")


def run(args: argparse.Namespace) -> None:
    """Run `vxl2 eval`."""
    if missing := [f"--{name}" for name in ("benchmark", "mode", "data", "out") if getattr(args, name) is None]:
        raise RequestError(f"eval needs {', '.join(missing)}; see vxl2 eval --help")
    if args.subtitles and args.benchmark != "video_mme":
        raise RequestError(f"--subtitles applies to video_mme only, not to {args.benchmark}: remove it")
    from vxl2_jax.evaluation import data, runner
    from vxl2_jax.evaluation.benchmark_run import BenchmarkRun

    benchmark = evaluation.get_benchmark(args.benchmark)
    left_out: list[str] = []
    items = data.read(
        benchmark,
        args.data,
        annotations=args.annotations or (),
        videos=args.videos,
        subtitle_folder=args.subtitles,
        limit=args.limit,
        left_out=left_out.append,
    )
    answer = args.answer or (choices.LIKELIHOOD if options.is_toy(args.model) else choices.GENERATE)
    if answer == choices.LIKELIHOOD:
        if args.subtitles:
            raise RequestError("--subtitles are part of the prompt of a generated response: add --answer generate")
        items = choices.keep_answerable(items, left_out.append)
    watch, ask = released(args.benchmark, args.mode)
    watch, ask = watch | given(args, WatchOptions), ask | given(args, AskOptions)
    WatchOptions(**watch).check()
    settings = BenchmarkRun(args.benchmark, items, args.mode, watch, ask, args.subtitles is not None, left_out, answer)
    workers.check_memories(args)
    fleet = workers.fleet_of(args)
    if fleet is here.run:
        hardware.device()  # raises before anything is written
    with progress("evaluating", "videos", args.quiet) as advance:
        did = runner.evaluate(
            settings, workers.loader(args), args.out, fleet=fleet, memories=args.memories, progress=advance
        )
    _print_reports([args.out], args.json)
    if did and len(did["workers"]) > 1:
        print(f"vxl2: {args.out}: {workers.summary(did)}: see fleet.jsonl there", file=sys.stderr)


def _report(args: argparse.Namespace) -> None:
    """Run `vxl2 eval report`."""
    _print_reports(args.runs, args.json)


def _print_reports(folders: list[Path], as_json: bool) -> None:
    """Write the reports into their folders, and print them."""
    from vxl2_jax.evaluation import report

    reports = [report.write(folder) for folder in folders]
    if as_json:
        print(json.dumps(reports[0] if len(reports) == 1 else reports, indent=1))
    else:
        print(printable("\n".join(map(report.as_markdown, reports))), end="")
    for folder, data in zip(folders, reports, strict=True):
        if data["failures"]:
            print(f"vxl2: {folder}: {len(data['failures'])} videos failed: see report.md there", file=sys.stderr)
        if failed := data["failed_questions"]:
            print(f"vxl2: {folder}: {len(failed)} questions could not be asked: see report.md there", file=sys.stderr)
        if left_out := data["settings"].get("left_out"):
            print(
                f"vxl2: {folder}: {len(left_out)} annotation rows were left out: see report.md there", file=sys.stderr
            )


def _compare(args: argparse.Namespace) -> None:
    """Run `vxl2 eval compare`."""
    from vxl2_jax.evaluation import compare

    data = compare.compare(compare.read(args.a), compare.read(args.b))
    if args.out:
        compare.write(args.out, data)
    print(
        json.dumps(data, indent=1) if args.json else printable(compare.as_markdown(data)), end="\n" if args.json else ""
    )
