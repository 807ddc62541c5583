"""`vxl2 convert`: convert a checkpoint of the original to the native format."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from vxl2_jax import files, scope
from vxl2_jax.checkpoints import fetch, native
from vxl2_jax.cli import options
from vxl2_jax.cli.options import DTYPES, Help, add_output, progress
from vxl2_jax.models.quantised import SETTINGS, bytes_of, setting_of
from vxl2_jax.text.tokenizer import Tokenizer
from vxl2_jax.text.typed import printable, printable_json

_EXAMPLES = """example:
  vxl2 convert BAAI/Video-XL-2 video-xl-2-native --dtype bfloat16
  vxl2 convert BAAI/Video-XL-2 video-xl-2-int8 --weights int8;  vxl2 ask film.mkv "Who?" --model video-xl-2-int8

A native checkpoint loads faster: nothing is renamed, transposed or quantised."""


def add(commands: Any, help: str) -> None:
    """Add the command, with its line in `vxl2 --help`, to the subparsers `commands`."""
    convert = commands.add_parser(
        "convert",
        formatter_class=Help,
        epilog=_EXAMPLES,
        help=help,
        description="Convert a Hugging Face checkpoint of the original to the native format.",
    )
    convert.set_defaults(run=run)
    convert.add_argument("source", metavar="SOURCE", help="a directory, or a name on the Hugging Face hub")
    convert.add_argument("target", type=options.path, metavar="TARGET", help="the directory to write; must not exist")
    convert.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="dtype of the wide weights that are written"
    )
    options.add_weights(convert, choices=SETTINGS)
    add_output(convert)


def run(args: argparse.Namespace) -> None:
    """Run `vxl2 convert`."""
    native.check_target(args.target)
    directory = fetch.find(args.source)
    # Before the weights, which may take minutes.
    tokenizer, known = Tokenizer.read(directory), scope.read(directory)
    more = {scope.FILE: files.read_bytes(directory / scope.FILE, files.CHECKPOINT_JSON)} if known else {}
    with progress("reading", "tensors", args.quiet) as advance:
        config, params = fetch.read(directory, args.dtype, advance, args.weights)
    native.save(args.target, config, params, tokenizer.json, more)
    written = {
        "checkpoint": str(args.target),
        "dtype": args.dtype,
        "weights": setting_of(params),
        "bytes": bytes_of(params),
    }
    if args.json:
        print(printable_json(written))
    else:
        print(printable(f"wrote {args.target} ({written['weights']} weights, {written['bytes'] / 1e6:,.1f} MB)"))
        print(printable(f'Next: vxl2 ask VIDEO "…" --model {shlex.quote(str(args.target))}'))
