"""The `vxl2` command: flags, files, clocks and exit codes. What it does is in the library."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vxl2_jax.errors import RequestError, VideoError, Vxl2Error

_ASK_EXAMPLES = """examples:
  vxl2 ask clip.mp4 "What appears at 12 seconds?"
  vxl2 ask clip.mp4 "Is there a dog?" "When does the dog first appear?" --plot answer.png
  vxl2 ask film.mkv "Who opens the door?" --model BAAI/Video-XL-2 --max-frames 2048 --json

The video is watched once and every question is asked of the same memory. First and last chunk are
always loaded dense, and the --top-k most relevant between them; the others are loaded pooled.
Without --model the tiny embedded model nano answers: see the README for what it can and cannot do.
Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, or else in the user's cache folder."""

_CONVERT_EXAMPLES = """example:
  vxl2 convert BAAI/Video-XL-2 video-xl-2-native --dtype bfloat16

The native directory (Orbax) needs no renaming or transposing when it is loaded."""


_PLAN_EXAMPLES = """examples:
  vxl2 plan --frames 10000 --device h200
  vxl2 plan --frames 2048 --fps 0.5 --block-size 4 --prev-blocks none --device a100-40 --json

Nothing is loaded and no accelerator is needed. Seconds are a floor: operations over the rate a device can
reach. Bytes count what stands in memory at the same time while a video is watched."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Examples as they are written; defaults only where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.default not in (None, False, argparse.SUPPRESS)
        return f"{action.help} (default: {action.default})" if told else action.help


def _or_none(word: str, kind: Callable = int) -> Callable[[str], int | None]:
    def parse(text: str) -> int | None:
        return None if text.lower() == word else kind(text)

    parse.__name__ = f"number (or {word})"
    return parse


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="vxl2", description="Video-XL-2 in JAX: watch a long video once, ask it many times.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_ask(commands)
    _add_convert(commands)
    _add_plan(commands)
    return parser


def _add_ask(commands) -> None:
    ask = commands.add_parser(
        "ask", formatter_class=_Help, epilog=_ASK_EXAMPLES, help="watch a video and answer questions about it",
        description="Watch a video and answer questions about it.",
    )
    ask.set_defaults(run=run_ask)
    ask.add_argument("video", metavar="VIDEO", help="a video or image file, or a folder of images")
    ask.add_argument("questions", nargs="+", metavar="QUESTION", help="one or more questions, in quotes")
    _add_model(ask)
    group = ask.add_argument_group("watching")
    group.add_argument("--fps", type=float, default=1.0, help="frames looked at per second (of an image folder: its rate)")
    group.add_argument("--max-frames", type=_or_none("none"), metavar="N", help="look at no more than N frames; short videos are then looked at more densely (default: no limit)")
    group.add_argument("--max-fps", type=float, default=4.0, help="how densely at most")
    group.add_argument("--block-size", type=int, default=4, metavar="B", help="groups of 4 frames in a block of chunk-based pre-filling")
    group.add_argument("--prev-blocks", type=_or_none("none"), default=3, metavar="P", help="earlier blocks a block sees whole; none: plain dense pre-filling")
    group.add_argument("--compression", type=int, default=4, metavar="C", help="visual tokens pooled into one in sparse chunks")
    group = ask.add_argument_group("asking")
    group.add_argument("--relevance", default="attention", help="how chunks are ranked: attention, uniform, random, recent, or oracle:FILE")
    group.add_argument("--top-k", type=_or_none("all"), default=4, metavar="K", help="interior chunks loaded dense; all: the whole memory")
    group.add_argument("--chunk-size", type=int, default=4, metavar="G", help="groups per chunk")
    group.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="longest answer")
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    group.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this total probability")
    group.add_argument("--seed", type=int, default=0, help="of drawn tokens and of --relevance random")
    group.add_argument("--follow", action="store_true", help="each question continues the conversation of those before it")
    group = ask.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON document, alone, on standard output")
    group.add_argument("--plot", type=Path, metavar="FILE.png", help="draw frames, relevance and dense chunks over time")
    group.add_argument("--quiet", action="store_true", help="no progress")


def _add_convert(commands) -> None:
    convert = commands.add_parser(
        "convert", formatter_class=_Help, epilog=_CONVERT_EXAMPLES, help="turn a checkpoint of the original into a native one",
        description="Turn a Hugging Face checkpoint of the original into a native one.",
    )
    convert.set_defaults(run=run_convert)
    convert.add_argument("source", metavar="SOURCE", help="a directory, or a name on the Hugging Face hub")
    convert.add_argument("target", type=Path, metavar="TARGET", help="the directory to write; must not exist")
    convert.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="of the weights written")
    convert.add_argument("--quiet", action="store_true", help="no progress")


def _add_plan(commands) -> None:
    plan = commands.add_parser(
        "plan", formatter_class=_Help, epilog=_PLAN_EXAMPLES, help="what a video will take: tokens, memory, time",
        description="Tell beforehand what watching a video takes, and whether it fits a device.",
    )
    plan.set_defaults(run=run_plan)
    plan.add_argument("--model", default="video-xl-2", help="video-xl-2 or nano")
    plan.add_argument("--frames", type=int, required=True, metavar="N", help="frames looked at")
    plan.add_argument("--fps", type=float, default=1.0, metavar="R", help="frames looked at per second")
    plan.add_argument("--block-size", type=int, default=4, metavar="B", help="groups of 4 frames in a block")
    plan.add_argument("--prev-blocks", type=_or_none("none"), default=3, metavar="P", help="earlier blocks a block sees; none: plain dense pre-filling")
    plan.add_argument("--compression", type=int, default=4, metavar="C", help="visual tokens pooled into one in sparse chunks")
    plan.add_argument("--question-tokens", type=int, default=68, metavar="S", help="tokens after the video")
    plan.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="of weights and memory")
    plan.add_argument("--device", default="h200", metavar="D", help="t4, l4, a100-40, a100-80, h100, h200, v4, v5e, v5p or v6e")
    plan.add_argument("--json", action="store_true", help="print one JSON document, alone, on standard output")


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="nano", help="nano, a checkpoint directory, or a name on the Hugging Face hub")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of weights and memory (default: float32 on CPU, float16 on a T4, else bfloat16)")
    # pallas_kernels.attention.NAMES, spelt out so that --help need not import JAX; a test keeps them equal.
    names = ("auto", "tpu", "hopper", "ampere", "reference")
    group.add_argument("--attention", choices=names, default="auto", help="attention kernel; auto takes the best that runs here, and says which. On a CPU the others are interpreted: slow, for checking")


@contextmanager
def _progress(label: str, unit: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error with rate and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit + " · {task.fields[rate]}"),
        TimeRemainingColumn(), console=Console(stderr=True), disable=quiet, transient=True,
    )
    with bar:
        task, start = bar.add_task(label, total=None, rate="…"), time.monotonic()

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, rate=f"{done / max(time.monotonic() - start, 1e-6):.1f}/s")

        yield advance


def run_ask(args: argparse.Namespace) -> None:
    """`vxl2 ask`."""
    from rich.console import Console

    from vxl2_jax import asking, plot, report
    from vxl2_jax.api import load

    options = {
        name: getattr(args, name)
        for name in ("relevance", "top_k", "chunk_size", "max_new_tokens", "temperature", "top_p", "seed")
    }
    asking.Options(**options).check()
    if not all(question.strip() for question in args.questions):
        raise RequestError("a question is empty")
    if args.plot:
        plot.check_path(args.plot)
    if not Path(args.video).exists():  # before a large model is loaded for nothing
        raise VideoError(f"{args.video}: no such file; give the path of a video, an image or a folder of images")
    if args.attention == "hopper":
        # Interpreted warpgroups wait for each other on threads of XLA's pool, of which a small CPU has too few.
        os.environ.setdefault("NPROC", "16")
    timings: dict[str, float] = {}
    start = time.perf_counter()
    with _progress("loading", "tensors", args.quiet) as advance:
        model = load(args.model, args.dtype, attention=args.attention, progress=advance)
    if not args.quiet:
        print(f"attention: {model.attention}", file=sys.stderr)
    timings["load model"] = time.perf_counter() - start
    watching = {name: getattr(args, name) for name in ("fps", "max_frames", "max_fps", "block_size", "prev_blocks", "compression")}
    with _progress("watching", "frames", args.quiet) as advance:
        memory = model.watch(args.video, **watching, progress=advance, timings=timings)
    answers: list = []
    with _progress("answering", "questions", args.quiet) as advance:
        for question in args.questions:
            answers.append(model.ask(memory, question, history=answers if args.follow else (), **options))
            advance(len(answers), len(args.questions))
    if args.plot:
        frames, seconds = _thumbnails(args.video, memory.frames, args.fps)
        plot.draw(args.plot, answers, frames, seconds, title=memory.video)
    if args.json:
        print(json.dumps({"model": model.name, "attention_kernel": model.attention, **report.as_data(memory, answers, timings)}, ensure_ascii=False, indent=1))
    else:
        Console(highlight=False).print(report.as_text(memory, answers, timings), soft_wrap=True)


def _thumbnails(video: str, frames: int, fps: float, most: int = 12):
    """A few frames evenly over the video: (uint8 [n, 160, 160, 3], seconds [n])."""
    import numpy as np

    from vxl2_jax.video.reader import open_video

    source = open_video(video, size=160, fps=fps, max_frames=min(most, frames))
    return np.concatenate(list(source.batches(most))), source.seconds


def run_convert(args: argparse.Namespace) -> None:
    """`vxl2 convert`."""
    from vxl2_jax.checkpoints import fetch, native
    from vxl2_jax.text.tokenizer import Tokenizer

    native.check_target(args.target)
    with _progress("reading", "tensors", args.quiet) as advance:
        directory, (config, params) = fetch.load(args.source, args.dtype, advance)
    native.save(args.target, config, params, Tokenizer.read(directory).json)
    print(f"wrote {args.target}")


def run_plan(args: argparse.Namespace) -> None:
    """`vxl2 plan`."""
    from rich.console import Console

    from vxl2_jax import planning, report
    from vxl2_jax.layout import Rule

    for name, least in (("frames", 1), ("block_size", 1), ("prev_blocks", 0), ("question_tokens", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise RequestError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    if not 0 < args.fps < float("inf"):
        raise RequestError(f"--fps must be a positive number, not {args.fps}")
    if args.device not in planning.DEVICES:
        raise RequestError(f"unknown device {args.device!r}: choose {', '.join(planning.DEVICES)}")
    device, itemsize = planning.DEVICES[args.device], 4 if args.dtype == "float32" else 2
    config, tokenizer = planning.model_of(args.model)
    plan = planning.plan(
        config, planning.layout_for(config, tokenizer, args.frames, args.fps), Rule(args.block_size, args.prev_blocks),
        question_tokens=args.question_tokens, compression=args.compression, itemsize=itemsize, sizes=device.sizes,
    )
    fits = plan.peak_bytes <= planning.USABLE * device.memory_gb * 1e9
    told = "" if fits else planning.advice(config, tokenizer, args.fps, device, compression=args.compression, itemsize=itemsize)
    document = report.plan_data(plan, args.device, device, fits, told)
    if args.json:
        print(json.dumps(document, indent=1))
    else:
        Console(highlight=False).print(report.plan_text(document), soft_wrap=True)


def _keep_compiled_programs() -> None:
    import jax

    if not jax.config.jax_compilation_cache_dir:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "vxl2_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 out of memory, 2 a mistake of input,
    130 interrupted, 141 nobody reads the output)."""
    args = build_parser().parse_args(argv)
    try:
        _keep_compiled_programs()
        args.run(args)
        sys.stdout.flush()
    except Vxl2Error as error:
        print(f"vxl2: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("vxl2: interrupted; nothing was written", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print("vxl2: out of memory; look at fewer frames (--max-frames) or lower --fps", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
