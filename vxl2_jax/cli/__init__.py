"""The `vxl2` command: arguments, progress, output and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from vxl2_jax import hardware
from vxl2_jax.cli import ask, batch, convert, eval, plan, train, watch
from vxl2_jax.errors import OUT_OF_MEMORY, Vxl2Error, is_out_of_memory
from vxl2_jax.text.typed import printable

_COMMANDS = (ask, watch, batch, eval, plan, convert, train)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="vxl2",
        description="Video-XL-2 in JAX: watch a long video once, ask its memory many times.",
        epilog='example: vxl2 ask clip.mp4 "Is there a dog?"      vxl2 COMMAND --help shows more',
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments. Unlike argparse, accept the rest of a command's list after options: ask VIDEO --quiet QUESTION."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    name = getattr(args, "rest", "")
    if rest and not (name and all(not word.startswith("-") or " " in word for word in rest)):
        parser.error(f"unrecognized arguments: {printable(' '.join(rest))}")
    if rest:
        setattr(args, name, [*getattr(args, name), *rest])
    return args


def _enable_compilation_cache() -> None:
    if not jax.config.jax_compilation_cache_dir:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # XLA compiles CPU programs for the number of cores, which is not part of JAX's cache key.
        folder = root / "vxl2_jax" / "xla" / f"{hardware.cpu_cores()}-cores"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
      The exit code: 0 success, 1 out of memory, 2 invalid input, 130 interrupted, 141 output closed by its reader.
    """
    args = argparse.Namespace()
    # JAX's default is 0.75; `vxl2 plan` assumes this fraction.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    try:
        args = _parse(argv)
        _enable_compilation_cache()
        args.run(args)
        sys.stdout.flush()
    except Vxl2Error as error:
        print(f"vxl2: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"vxl2: interrupted; {getattr(args, 'interrupted', 'nothing was written')}", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"vxl2: {OUT_OF_MEMORY}", file=sys.stderr)
        return 1
    return 0
