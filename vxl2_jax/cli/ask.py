"""`vxl2 ask`: watch a video, or open its memory, and answer questions about it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from vxl2_jax.cli import options
from vxl2_jax.cli.options import ASKING, WATCHING, given, progress
from vxl2_jax.errors import RequestError

_EXAMPLES = """examples:
  vxl2 ask clip.mp4 "What appears at 12 seconds?"
  vxl2 ask clip.mp4 "Is there a dog?" "When does the dog first appear?" --plot answer.png
  vxl2 ask film.mkv "Who opens the door?" --model BAAI/Video-XL-2 --max-frames 2048 --json
  vxl2 watch film.mkv --out film.memory;  vxl2 ask --memory film.memory "Who opens the door?"

The video is watched once and every question is asked of the same memory. First and last chunk are
always loaded dense, and the --top-k most relevant between them; the others are loaded pooled.
Without --model the tiny embedded model nano answers: see the README for what it can and cannot do.
Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, or else in the user's cache folder."""


def add(commands) -> None:
    ask = commands.add_parser(
        "ask",
        formatter_class=options.Help,
        epilog=_EXAMPLES,
        help="watch a video and answer questions about it",
        usage="vxl2 ask [options] VIDEO QUESTION...\n       vxl2 ask [options] --memory FILE QUESTION...",
        description="Watch a video, or open its memory, and answer questions about it.",
    )
    ask.set_defaults(run=run)
    ask.add_argument("video", metavar="VIDEO", help="a video or image file, or a folder of images; not with --memory")
    ask.add_argument("questions", nargs="*", metavar="QUESTION", help="one or more questions, in quotes")
    ask.add_argument(
        "--memory", type=Path, metavar="FILE", help="ask a memory that `vxl2 watch` wrote, instead of watching a video"
    )
    options.add_model(ask)
    options.add_watching(ask)
    options.add_asking(ask)
    ask.add_argument(
        "--follow", action="store_true", help="each question continues the conversation of those before it"
    )
    group = ask.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON document, alone, on standard output")
    group.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw frames, relevance and dense chunks over time"
    )
    group.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> None:
    """`vxl2 ask`."""
    from rich.console import Console

    from vxl2_jax import generate, plot
    from vxl2_jax.cli import render
    from vxl2_jax.memory import VideoMemory

    video, questions = _inputs(args)
    generate.AskOptions(**given(args, ASKING)).check()
    if args.plot:
        plot.check_path(args.plot)
    timings: dict[str, float] = {}
    start = time.perf_counter()
    memory = VideoMemory.load(args.memory) if video is None else options.check_video(video)
    model = options.load_model(args)
    timings["load model"] = time.perf_counter() - start
    if video is not None:
        with progress("watching", "frames", args.quiet) as advance:
            memory = model.watch(video, **given(args, WATCHING), progress=advance, timings=timings)
    answers: list = []
    with progress("answering", "questions", args.quiet) as advance:
        if args.follow:
            for question in questions:
                answers.append(model.ask(memory, question, history=answers, **given(args, ASKING)))
                advance(len(answers), len(questions))
        else:
            answers = model.ask(memory, questions, **given(args, ASKING))
    if args.plot:
        frames, seconds = _thumbnails(video, memory.frames, getattr(args, "fps", 1.0)) if video else ((), ())
        plot.draw(args.plot, answers, frames, seconds, title=memory.video)
    if args.json:
        document = {
            "model": model.name,
            "attention_kernel": model.attention,
            **render.as_data(memory, answers, timings),
        }
        print(json.dumps(document, ensure_ascii=False, indent=1))
    else:
        Console(highlight=False).print(render.as_text(memory, answers, timings), soft_wrap=True)


def _inputs(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """(video, or None with --memory; questions), or RequestError."""
    if args.memory is None:
        video, questions = args.video, args.questions
    else:
        video, questions = None, [args.video, *args.questions]
        if Path(args.video).exists():
            raise RequestError(f"{args.video}: a video and a memory were given; leave one of them out")
        if found := given(args, WATCHING):
            option = "--" + next(iter(found)).replace("_", "-")
            raise RequestError(
                f"{option} is for watching, and {args.memory} was watched already: leave it out, or give the video"
            )
    if not questions:
        raise RequestError("no question given: put it in quotes after the video")
    if not all(question.strip() for question in questions):
        raise RequestError("a question is empty")
    return video, questions


def _thumbnails(video: str, frames: int, fps: float, most: int = 12):
    """A few frames evenly over the video: (uint8 [n, 160, 160, 3], seconds [n])."""
    import numpy as np

    from vxl2_jax.video.reader import open_video

    source = open_video(video, size=160, fps=fps, max_frames=min(most, frames))
    return np.concatenate(list(source.batches(most))), source.seconds
