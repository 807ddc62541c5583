"""`vxl2 watch`: watch a video and write its memory to a file."""

from __future__ import annotations

import argparse
import shlex
import time
from typing import Any

from vxl2_jax.cli import options
from vxl2_jax.cli.download import add_allow_url, local_copy
from vxl2_jax.cli.options import given, progress
from vxl2_jax.files import check_output
from vxl2_jax.options import WatchOptions
from vxl2_jax.text import typed

_EXAMPLES = """examples:
  vxl2 watch film.mkv --out film.memory --model BAAI/Video-XL-2
  vxl2 ask --memory film.memory "Who opens the door?" --model BAAI/Video-XL-2

If watching is interrupted, the same command resumes. An incomplete memory is kept next to FILE, as .FILE.part.
Only the model that made a memory can read it."""


def add(commands: Any, help: str) -> None:
    """Add the command, with its line in `vxl2 --help`, to the subparsers `commands`."""
    watch = commands.add_parser(
        "watch",
        formatter_class=options.Help,
        epilog=_EXAMPLES,
        help=help,
        description="Watch a video and write its memory to a file, to ask it later.",
    )
    watch.set_defaults(run=run, interrupted="the same command resumes")
    watch.add_argument("video", metavar="VIDEO", help="a video file, an image or a folder of images")
    watch.add_argument("--out", type=options.path, required=True, metavar="FILE", help="the memory file to write")
    add_allow_url(watch)
    options.add_model(watch)
    options.add_hosts(watch)
    options.add_options(watch, WatchOptions, "watching")
    options.add_output(watch)


def run(args: argparse.Namespace) -> None:
    """Run `vxl2 watch`."""
    watch = given(args, WatchOptions)
    WatchOptions(**watch).check()
    check_output(args.out)
    with local_copy(args.video, args) as video:
        _run(args, video, watch)


def _run(args: argparse.Namespace, video: str, watch: dict[str, Any]) -> None:
    from rich.console import Console

    from vxl2_jax.cli import render

    options.check_video(video)
    timings: dict[str, float] = {}
    start = time.perf_counter()
    model = options.load_model(args)
    timings["load model"] = time.perf_counter() - start
    existed = args.out.exists()
    with progress("watching", "frames", args.quiet) as advance:
        memory = model.watch(video, out=args.out, **watch, progress=advance, timings=timings)
    size = args.out.stat().st_size
    if args.json:
        file = {"path": str(args.out), "bytes": size, "was_there": existed}
        document = {"model": model.name, "memory": file, **render.as_data(memory, [], timings)}
        print(typed.printable_json(document))
    else:
        Console(highlight=False).print(render.as_text(memory, [], timings), soft_wrap=True)
        state = "exists already" if existed else "written"
        print(typed.printable(f"{args.out}: {state}, {size / 1e6:,.1f} MB"))
        # The memory can be read by these weights in this dtype only.
        chosen = {name: getattr(args, name) for name in ("model", "dtype", "weights", "mesh")}
        chosen["model"] = None if args.model == "nano" else args.model
        named = "".join(f" --{name} {shlex.quote(value)}" for name, value in chosen.items() if value)
        print(typed.printable(f'Next: vxl2 ask --memory {shlex.quote(str(args.out))} "…"{named}'))
