"""`vxl2 watch`: watch a video and keep its memory in a file."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from vxl2_jax.cli import options
from vxl2_jax.cli.options import WATCHING, given, progress
from vxl2_jax.errors import RequestError

_EXAMPLES = """examples:
  vxl2 watch film.mkv --out film.memory --model BAAI/Video-XL-2
  vxl2 ask --memory film.memory "Who opens the door?" --model BAAI/Video-XL-2

If watching is cut off, the same command goes on where it was. Until the memory is complete it lies beside FILE
under the name .FILE.part. A memory belongs to the model that made it."""


def add(commands) -> None:
    watch = commands.add_parser(
        "watch",
        formatter_class=options.Help,
        epilog=_EXAMPLES,
        help="watch a video and keep its memory in a file",
        description="Watch a video and keep its memory in a file, to be asked at any time.",
    )
    watch.set_defaults(run=run, interrupted="the same command goes on where it was")
    watch.add_argument("video", metavar="VIDEO", help="a video or image file, or a folder of images")
    watch.add_argument("--out", type=Path, required=True, metavar="FILE", help="the memory file to write")
    options.add_model(watch)
    options.add_watching(watch)
    group = watch.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON document, alone, on standard output")
    group.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> None:
    """`vxl2 watch`."""
    from rich.console import Console

    from vxl2_jax.cli import render

    options.check_video(args.video)
    if args.out.is_dir() or not args.out.absolute().parent.is_dir():
        raise RequestError(f"{args.out}: name a file in a folder that is there")
    timings: dict[str, float] = {}
    start = time.perf_counter()
    model = options.load_model(args)
    timings["load model"] = time.perf_counter() - start
    there = args.out.exists()
    with progress("watching", "frames", args.quiet) as advance:
        memory = model.watch(args.video, out=args.out, **given(args, WATCHING), progress=advance, timings=timings)
    size = args.out.stat().st_size
    if args.json:
        told = {"path": str(args.out), "bytes": size, "was_there": there}
        document = {"model": model.name, "memory": told, **render.as_data(memory, [], timings)}
        print(json.dumps(document, ensure_ascii=False, indent=1))
    else:
        console = Console(highlight=False)
        console.print(render.as_text(memory, [], timings), soft_wrap=True)
        console.print(
            f"{args.out}: {'was there already' if there else 'written'}, {size / 1e6:,.1f} MB", soft_wrap=True
        )
