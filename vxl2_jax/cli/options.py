"""Options that several commands share, and how they are shown."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vxl2_jax.errors import VideoError

WATCHING = ("fps", "max_frames", "max_fps", "block_size", "prev_blocks", "compression")
"""Options of `Model.watch`. One that is not given is left to its default there."""
ASKING = ("relevance", "top_k", "chunk_size", "max_new_tokens", "temperature", "top_p", "seed")


class Help(argparse.RawDescriptionHelpFormatter):
    """Examples as they are written; defaults only where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.default not in (None, False, argparse.SUPPRESS)
        return f"{action.help} (default: {action.default})" if told else action.help


def or_none(word: str, kind: Callable = int) -> Callable[[str], int | None]:
    """A parser of a number, or of a word that stands for None."""

    def parse(text: str) -> int | None:
        return None if text.lower() == word else kind(text)

    parse.__name__ = f"number (or {word})"
    return parse


def add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default="nano", help="nano, a checkpoint directory, or a name on the Hugging Face hub"
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of weights and memory (default: float32 on CPU, float16 on a T4, else bfloat16)",
    )
    # pallas_kernels.attention.NAMES, spelt out so that --help need not import JAX; a test keeps them equal.
    names = ("auto", "tpu", "hopper", "ampere", "reference")
    group.add_argument(
        "--attention",
        choices=names,
        default="auto",
        help="attention kernel; auto takes the best that runs here, and says which. On a CPU the others are interpreted: slow, for checking",
    )


def add_watching(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("watching")

    def add(name: str, told: str, **options: object) -> None:
        group.add_argument(name, default=argparse.SUPPRESS, help=told, **options)

    add("--fps", "frames looked at per second (of an image folder: its rate) (default: 1)", type=float)
    add(
        "--max-frames",
        "look at no more than N frames; short videos are then looked at more densely (default: no limit)",
        type=or_none("none"),
        metavar="N",
    )
    add("--max-fps", "how densely at most (default: 4)", type=float)
    add("--block-size", "groups of 4 frames in a block of chunk-based pre-filling (default: 4)", type=int, metavar="B")
    add(
        "--prev-blocks",
        "earlier blocks a block sees whole; none: plain dense pre-filling (default: 3)",
        type=or_none("none"),
        metavar="P",
    )
    add("--compression", "visual tokens pooled into one in sparse chunks (default: 4)", type=int, metavar="C")


def add_asking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("asking")
    group.add_argument(
        "--relevance",
        default="attention",
        help="how chunks are ranked: attention, mass (of the attention, plainly), uniform, random, recent, or oracle:FILE",
    )
    group.add_argument(
        "--top-k",
        type=or_none("all"),
        default=4,
        metavar="K",
        help="interior chunks loaded dense; all: the whole memory",
    )
    group.add_argument("--chunk-size", type=int, default=4, metavar="G", help="groups per chunk")
    group.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="longest answer")
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    group.add_argument(
        "--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this total probability"
    )
    group.add_argument("--seed", type=int, default=0, help="of drawn tokens and of --relevance random")


def given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, object]:
    """Those of the options that the command line gave, or that have a default there."""
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def check_video(path: str) -> None:
    """Raise VideoError for a path that is not there: before a large model is loaded for nothing."""
    if not Path(path).exists():
        raise VideoError(f"{path}: no such file; give the path of a video, an image or a folder of images")


def load_model(args: argparse.Namespace):
    """The model that the options name, with a progress bar, and a line that tells the attention kernel."""
    from vxl2_jax.api import load

    if args.attention == "hopper":
        # Interpreted warpgroups wait for each other on threads of XLA's pool, of which a small CPU has too few.
        os.environ.setdefault("NPROC", "16")
    with progress("loading", "tensors", args.quiet) as advance:
        model = load(args.model, args.dtype, attention=args.attention, progress=advance)
    if not args.quiet:
        print(f"attention: {model.attention}", file=sys.stderr)
    return model


@contextmanager
def progress(label: str, unit: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error with rate and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + " · {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
        transient=True,
    )
    with bar:
        task, begin = bar.add_task(label, total=None, rate="…"), None

        def advance(done: int, total: int) -> None:
            # What was there before, as of a resumed recording, does not count for the rate.
            nonlocal begin
            begin = begin or (done, time.monotonic())
            rate = (done - begin[0]) / max(time.monotonic() - begin[1], 1e-6) if done > begin[0] else 0.0
            bar.update(task, completed=done, total=total, rate=f"{rate:.1f}/s" if rate else "…")

        yield advance
