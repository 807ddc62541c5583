"""`vxl2 ask`: watch a video, or load its memory, and answer questions about it."""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vxl2_jax.answer import Answer
from vxl2_jax.cli import options
from vxl2_jax.cli.download import add_allow_url, local_copy
from vxl2_jax.cli.options import given, progress
from vxl2_jax.errors import RequestError
from vxl2_jax.generate import encode_questions
from vxl2_jax.memory import VideoMemory
from vxl2_jax.options import AskOptions, WatchOptions
from vxl2_jax.text import typed
from vxl2_jax.video.reader import open_video

_EXAMPLES = """examples:
  vxl2 ask clip.mp4 "What appears at 12 seconds?"
  vxl2 ask clip.mp4 "Is there a dog?" "When does the dog first appear?" --plot answer.png
  vxl2 ask film.mkv "Who opens the door?" --model BAAI/Video-XL-2 --max-frames 2048 --json
  vxl2 watch film.mkv --out film.memory;  vxl2 ask --memory film.memory "Who opens the door?"

The video is watched once, and all questions read the same memory. The first, the last and the --top-k most relevant
chunks are loaded dense, the others pooled. Without --model, the tiny model nano inside the package answers: the README
says what it can do. Compiled programs are cached in JAX_COMPILATION_CACHE_DIR, or in the user's cache folder."""


def add(commands: Any, help: str) -> None:
    """Add the command, with its line in `vxl2 --help`, to the subparsers `commands`."""
    ask = commands.add_parser(
        "ask",
        formatter_class=options.Help,
        epilog=_EXAMPLES,
        help=help,
        usage="vxl2 ask [options] VIDEO QUESTION...\n       vxl2 ask [options] --memory FILE QUESTION...",
        description="Watch a video, or load its memory, and answer questions about it.",
    )
    ask.set_defaults(run=run, rest="questions")
    ask.add_argument("video", metavar="VIDEO", help="a video file, an image or a folder of images; not with --memory")
    ask.add_argument("questions", nargs="*", metavar="QUESTION", help="one or more questions, in quotes")
    ask.add_argument(
        "--memory",
        type=options.path,
        metavar="FILE",
        help="a memory that `vxl2 watch` wrote, to ask instead of a video",
    )
    add_allow_url(ask)
    options.add_model(ask)
    options.add_hosts(ask)
    options.add_options(ask, WatchOptions, "watching")
    options.add_options(ask, AskOptions, "asking")
    ask.add_argument(
        "--follow", action="store_true", help="make the questions one conversation: each one sees the previous answers"
    )
    options.add_output(ask).add_argument(
        "--plot", type=options.path, metavar="FILE.png", help="plot frames, relevance and dense chunks over time"
    )


def run(args: argparse.Namespace) -> None:
    """Run `vxl2 ask`."""
    from vxl2_jax import plot

    video, questions = _inputs(args)
    WatchOptions(**given(args, WatchOptions)).check()
    AskOptions(**given(args, AskOptions)).check()
    if args.plot:
        plot.check_path(args.plot, video)
    with nullcontext(None) if video is None else local_copy(video, args) as video:
        _run(args, video, questions)


def _run(args: argparse.Namespace, video: str | None, questions: list[str]) -> None:
    """Ask about a video; None: about the memory."""
    from rich.console import Console

    from vxl2_jax import plot
    from vxl2_jax.cli import render

    watch, ask = given(args, WatchOptions), given(args, AskOptions)
    timings: dict[str, float] = {}
    start = time.perf_counter()
    memory: Any = VideoMemory.load(args.memory) if video is None else None
    if video is not None:
        options.check_video(video)
    model = options.load_model(args)
    timings["load model"] = time.perf_counter() - start
    encode_questions(model, questions, AskOptions(**ask))  # raises before the video is watched
    if video is not None:
        with progress("watching", "frames", args.quiet) as advance:
            memory = model.watch(video, **watch, progress=advance, timings=timings)
    answers: list[Answer] = []
    with progress("answering", "questions", args.quiet) as advance:
        if args.follow:
            for question in questions:
                answers.append(model.ask(memory, question, history=answers, **ask))
                advance(len(answers), len(questions))
        else:
            answers = model.ask(memory, questions, **ask)
    elapsed = time.perf_counter() - args.started
    if not args.json:
        Console(highlight=False).print(render.as_text(memory, answers, timings, elapsed), soft_wrap=True)
        if AskOptions(**ask).top_k is not None and all(chunk.dense for one in answers for chunk in one.chunks):
            chunks = len(answers[0].chunks)
            print(f"everything was loaded: {memory.frames} frames make {chunks} chunks, too few to select from")
    if args.plot:
        frames, seconds = thumbnails(video, memory.frames, WatchOptions(**watch)) if video else ((), ())
        plot.draw(args.plot, answers, frames, seconds, title=memory.video)
    if args.json:
        document = {
            "model": model.name,
            "attention_kernel": model.kernel_reason,
            "answered_after_s": round(elapsed, 4),
            **render.as_data(memory, answers, timings),
            "plot": str(args.plot) if args.plot else None,
        }
        print(typed.printable_json(document))
    elif args.plot:
        print(typed.printable(f"picture: {args.plot}"))


def _inputs(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """(video, or None with --memory; questions). Raises RequestError."""
    if args.memory is None:
        video, questions = args.video, args.questions
    else:
        # Never looked up as a file: any text may be a question.
        video, questions = None, [args.video, *args.questions]
        if watch := given(args, WatchOptions):
            option = "--" + next(iter(watch)).replace("_", "-")
            raise RequestError(f"{option} does not apply to {args.memory}, which is watched already: remove it")
    if not questions:
        raise RequestError("no question given: put it in quotes after the video")
    return video, [typed.prepare(question) for question in questions]


def thumbnails(
    video: str, frames: int, options: WatchOptions, count: int = 12
) -> tuple[UInt8[np.ndarray, "N 160 160 3"], Float[np.ndarray, " N"]]:
    """At most `count` of the frames that were watched with these options, evenly spaced, and their times in seconds."""
    sampling = replace(options, max_frames=min(count, frames)).sampling
    source = open_video(video, size=160, **sampling)
    return np.concatenate(list(source.batches(count))), source.seconds
