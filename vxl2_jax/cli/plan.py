"""`vxl2 plan`: what a video will take, before anything is loaded."""

from __future__ import annotations

import argparse
import json

from vxl2_jax.cli.options import Help, or_none
from vxl2_jax.errors import RequestError

_EXAMPLES = """examples:
  vxl2 plan --frames 10000 --device h200
  vxl2 plan --frames 2048 --fps 0.5 --block-size 4 --prev-blocks none --device a100-40 --json

Nothing is loaded and no accelerator is needed. Seconds are a floor: operations over the rate a device can
reach. Bytes count what stands in memory at the same time while a video is watched."""


def add(commands) -> None:
    plan = commands.add_parser(
        "plan",
        formatter_class=Help,
        epilog=_EXAMPLES,
        help="what a video will take: tokens, memory, time",
        description="Tell beforehand what watching a video takes, and whether it fits a device.",
    )
    plan.set_defaults(run=run)
    plan.add_argument("--model", default="video-xl-2", help="video-xl-2 or nano")
    plan.add_argument("--frames", type=int, required=True, metavar="N", help="frames looked at")
    plan.add_argument("--fps", type=float, default=1.0, metavar="R", help="frames looked at per second")
    plan.add_argument("--block-size", type=int, default=4, metavar="B", help="groups of 4 frames in a block")
    plan.add_argument(
        "--prev-blocks",
        type=or_none("none"),
        default=3,
        metavar="P",
        help="earlier blocks a block sees; none: plain dense pre-filling",
    )
    plan.add_argument(
        "--compression", type=int, default=4, metavar="C", help="visual tokens pooled into one in sparse chunks"
    )
    plan.add_argument("--question-tokens", type=int, default=68, metavar="S", help="tokens after the video")
    plan.add_argument("--chunk-size", type=int, default=4, metavar="G", help="groups per chunk")
    plan.add_argument(
        "--top-k",
        type=or_none("all"),
        default=4,
        metavar="K",
        help="interior chunks a question loads dense; all: the whole memory",
    )
    plan.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="of weights and memory"
    )
    plan.add_argument(
        "--device", default="h200", metavar="D", help="t4, l4, a100-40, a100-80, h100, h200, v4, v5e, v5p or v6e"
    )
    plan.add_argument("--json", action="store_true", help="print one JSON document, alone, on standard output")


def run(args: argparse.Namespace) -> None:
    """`vxl2 plan`."""
    from rich.console import Console

    from vxl2_jax import planning
    from vxl2_jax.cli import render
    from vxl2_jax.layout import PrefillRule

    numbers = {"frames": 1, "block_size": 1, "prev_blocks": 0, "question_tokens": 0, "chunk_size": 1, "top_k": 0}
    for name, least in numbers.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise RequestError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    if not 0 < args.fps < float("inf"):
        raise RequestError(f"--fps must be a positive number, not {args.fps}")
    if args.device not in planning.DEVICES:
        raise RequestError(f"unknown device {args.device!r}: choose {', '.join(planning.DEVICES)}")
    device, itemsize = planning.DEVICES[args.device], 4 if args.dtype == "float32" else 2
    config, tokenizer = planning.model_of(args.model)
    asked = {name: getattr(args, name) for name in ("question_tokens", "compression", "chunk_size", "top_k")}
    plan = planning.plan(
        config,
        planning.layout_for(config, tokenizer, args.frames, args.fps),
        PrefillRule(args.block_size, args.prev_blocks),
        **asked,
        **device.settings(config, itemsize),
    )
    fits = plan.fits(device)
    told = "" if fits else planning.advice(config, tokenizer, args.fps, device, itemsize=itemsize, **asked)
    document = render.plan_data(plan, args.device, device, fits, told)
    if args.json:
        print(json.dumps(document, indent=1))
    else:
        Console(highlight=False).print(render.plan_text(document), soft_wrap=True)
