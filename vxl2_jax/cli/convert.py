"""`vxl2 convert`: a checkpoint of the original becomes a native one."""

from __future__ import annotations

import argparse
from pathlib import Path

from vxl2_jax.cli.options import Help, progress

_EXAMPLES = """example:
  vxl2 convert BAAI/Video-XL-2 video-xl-2-native --dtype bfloat16

The native directory (Orbax) needs no renaming or transposing when it is loaded."""


def add(commands) -> None:
    convert = commands.add_parser(
        "convert",
        formatter_class=Help,
        epilog=_EXAMPLES,
        help="turn a checkpoint of the original into a native one",
        description="Turn a Hugging Face checkpoint of the original into a native one.",
    )
    convert.set_defaults(run=run)
    convert.add_argument("source", metavar="SOURCE", help="a directory, or a name on the Hugging Face hub")
    convert.add_argument("target", type=Path, metavar="TARGET", help="the directory to write; must not exist")
    convert.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="of the weights written"
    )
    convert.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> None:
    """`vxl2 convert`."""
    from vxl2_jax.checkpoints import fetch, native
    from vxl2_jax.text.tokenizer import Tokenizer

    native.check_target(args.target)
    with progress("reading", "tensors", args.quiet) as advance:
        directory, (config, params) = fetch.load(args.source, args.dtype, advance)
    native.save(args.target, config, params, Tokenizer.read(directory).json)
    print(f"wrote {args.target}")
