"""Where an experiment starts: `if __name__ == "__main__": start.run(main)`. Standard library only."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

_HELP = {"-h", "--help", "-help", "--helpshort", "-helpshort", "--helpfull", "-helpfull", "-?"}


def no_flags() -> None:
    """For a program of absl that has no flags of its own: `--help` still explains it."""


def run(main: Callable[..., Any], define_flags: Callable[[], None] | None = None) -> NoReturn:
    """Run an experiment, and exit with what it returns.

    Usage lines say `python -m MODULE`; help is a success, with absl too; output that nobody reads any more (`| head`) ends
    the program with code 141.

    Args:
      main: without parameters; with absl, a function of the arguments that are no flags.
      define_flags: defines absl's flags, which a process has once. So modules define them when they start, not when they are
        imported: two modules may have a flag of the same name.
    """
    spec = sys.modules["__main__"].__spec__
    sys.argv[0] = f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]
    try:
        try:
            if define_flags:
                from absl import app

                define_flags()
                app.run(main)
            sys.exit(main())
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes what is left once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except SystemExit as stop:
        if define_flags and stop.code == 1 and _HELP & set(sys.argv[1:]):
            sys.exit(0)
        raise
