"""The `vxl2` command: flags, files, clocks and exit codes. What it does is in the library."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vxl2_jax.cli import ask, batch, convert, eval, plan, train, watch
from vxl2_jax.errors import Vxl2Error

_COMMANDS = (ask, watch, batch, eval, plan, convert, train)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="vxl2",
        description="Video-XL-2 in JAX: watch a long video once, ask it many times.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser


def _keep_compiled_programs() -> None:
    import jax

    from vxl2_jax import hardware

    if not jax.config.jax_compilation_cache_dir:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # XLA cuts a CPU's programs up for the cores it finds, and JAX does not ask how many when it looks for one.
        kept = root / "vxl2_jax" / "xla" / f"{hardware.cpu_cores()}-cores"
        jax.config.update("jax_compilation_cache_dir", str(kept))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 out of memory, 2 a mistake of input,
    130 interrupted, 141 nobody reads the output)."""
    args = build_parser().parse_args(argv)
    # JAX would take three quarters of a card; `vxl2 plan` counts with all but a twentieth.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    try:
        _keep_compiled_programs()
        args.run(args)
        sys.stdout.flush()
    except Vxl2Error as error:
        print(f"vxl2: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"vxl2: interrupted; {getattr(args, 'interrupted', 'nothing was written')}", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print("vxl2: out of memory; look at fewer frames (--max-frames) or lower --fps", file=sys.stderr)
        return 1
    return 0
