"""`vxl2 memories`: what is in a folder of memories that `vxl2 batch --memories` or `vxl2 eval --memories` filled."""

from __future__ import annotations

import argparse
from typing import Any

from vxl2_jax.cli import options
from vxl2_jax.errors import RequestError
from vxl2_jax.storage import catalogue, shared
from vxl2_jax.storage.memory_file import layout_from_identity
from vxl2_jax.text import typed

_EXAMPLES = """examples:
  vxl2 memories memories
  vxl2 memories memories --check --prune
  vxl2 memories s3://bucket/memories

At an address, --check fetches one memory after the other; incomplete memories are on the machines that watch, and are not
listed. An incomplete memory resumes when its video is watched again with the same settings. The exit code is 2 if damaged
memories remain."""


def add(commands: Any, help: str) -> None:
    """Add the command, with its line in `vxl2 --help`, to the subparsers `commands`."""
    memories = commands.add_parser(
        "memories",
        formatter_class=options.Help,
        epilog=_EXAMPLES,
        help=help,
        description="List, check and prune a folder of memories.",
    )
    memories.set_defaults(run=run)
    memories.add_argument("folder", type=shared.location, metavar="DIR", help="a folder of --memories, or its address")
    memories.add_argument("--check", action="store_true", help="read every memory and compare its checksums")
    memories.add_argument(
        "--prune", action="store_true", help="remove damaged memories, and incomplete ones that nobody is writing"
    )
    memories.add_argument("--json", action="store_true", help="print a single JSON document on standard output")


def run(args: argparse.Namespace) -> None:
    """Run `vxl2 memories`."""
    folder = shared.open_folder(args.folder, create=False)
    removed = [_as_data(entry) for entry in catalogue.prune(folder, args.check)] if args.prune else []
    found = [_as_data(entry) for entry in catalogue.entries(folder, args.check and not args.prune)]
    size = sum(entry["bytes"] for entry in found)
    if args.json:
        print(typed.printable_json({"memories": found, "removed": removed, "bytes": size, "checked": args.check}))
    else:
        for entry in found:
            print(typed.printable(_line(entry)))
        for entry in removed:
            print(typed.printable(f"removed: {entry['file']} ({entry['state']})"))
        print(f"{len(found):,} files, {size / 1e6:,.1f} MB")
    if damaged := [entry for entry in found if entry["state"] == catalogue.DAMAGED]:
        raise RequestError(f"{len(damaged)} damaged memories ({damaged[0]['problem']}): --prune removes them")


def _as_data(entry: catalogue.Entry) -> dict[str, Any]:
    identity = entry.identity
    about = {"file": entry.path.name, "state": entry.state, "bytes": entry.bytes}
    if entry.problem:
        about["problem"] = entry.problem
    if identity:
        tokens = layout_from_identity(identity).length
        names = ("video", "frames", "end_s", "model")
        about |= {name: identity[name] for name in names} | {"tokens": tokens, "cache": identity["shape"][3]}
    return about


def _line(entry: dict[str, Any]) -> str:
    text = f"{entry['file']}: {entry['state']}, {entry['bytes'] / 1e6:,.1f} MB"
    if "video" not in entry:
        return text
    return (
        f"{text}, {entry['video']!r}, {entry['frames']:,} frames, {entry['end_s']:,.1f} s, {entry['tokens']:,} tokens, "
        f"{entry['cache']}, model {entry['model'][:12]}"
    )
