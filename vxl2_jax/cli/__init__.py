"""The `vxl2` command: arguments, progress, output and exit codes."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
import warnings
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import vxl2_jax
from vxl2_jax.errors import OUT_OF_MEMORY, RequestError, ToyModelWarning, Vxl2Error, first_line, is_out_of_memory
from vxl2_jax.text.typed import printable

COMMANDS = {
    "ask": "watch a video and answer questions about it",
    "chat": "watch a video and answer questions as they are typed",
    "watch": "watch a video and write its memory to a file",
    "batch": "answer questions about many videos",
    "memories": "list, check and prune a folder of memories",
    "eval": "run a benchmark, report on runs, compare two",
    "plan": "what a video costs: tokens, memory, time",
    "convert": "convert a checkpoint of the original to the native format",
    "train": "fine-tune a model on conversations about videos",
    "doctor": "report on the installation, and check a model's weights",
}
"""Each command is the module of its name, which is imported when the command is used."""


class _Parser(argparse.ArgumentParser):
    flags: dict[str, list[str]] = {}
    """The options of each command."""

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse ignores errors here: help that cannot be written would be a success."""
        (file or sys.stderr).write(message)


def build_parser(used: Collection[str] = tuple(COMMANDS)) -> _Parser:
    """The parser of the command line, with the arguments of the commands that are `used`."""
    parser = _Parser(
        prog="vxl2",
        description="Video-XL-2 in JAX: watch a long video once, then ask any number of questions of its memory, a key/value cache.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: vxl2 ask clip.mp4 "Is there a dog?"\nvxl2 COMMAND --help shows more.',
    )
    parser.add_argument("--version", action="version", version=f"vxl2_jax {vxl2_jax.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help in COMMANDS.items():
        if name in used:
            import_module(f"vxl2_jax.cli.{name}").add(commands, help)
        else:
            commands.add_parser(name, help=help)
    parser.flags = {name: [*sub._option_string_actions] for name, sub in commands.choices.items()}
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse arguments. Unlike argparse, accept the rest of a command's list after options: ask VIDEO --quiet QUESTION."""
    parser = build_parser(used=argv[:1])
    args, rest = parser.parse_known_args(argv)
    name = getattr(args, "rest", "")
    if rest and not (name and all(not word.startswith("-") or " " in word for word in rest)):
        parser.error(
            f"unrecognized arguments: {printable(' '.join(rest))}{_suggestion(args.command, parser.flags[args.command], rest)}"
        )
    if rest:
        setattr(args, name, [*getattr(args, name), *rest])
    return args


def _suggestion(command: str, flags: Sequence[str], words: Sequence[str]) -> str:
    """What may have been meant by options that a command does not have."""
    options = [flag for flag in flags if flag.startswith("--")]
    near = {match for word in words for match in get_close_matches(word.split("=")[0], options, 1, 0.75)}
    return f"; did you mean {' and '.join(sorted(near))}?" if near else f"; `vxl2 {command} --help` lists them"


def configure_jax() -> None:
    """Prepare JAX in a process of this command: the compilation cache, and settings that must not be inherited."""
    # JAX's default is 0.75; `vxl2 plan` assumes this fraction.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    import jax

    from vxl2_jax import compile_cache

    compile_cache.enable()
    # As in `hardware.numerics`, which is not around everything that training and planning compute.
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_numpy_dtype_promotion", "standard")


def _join_hosts(args: argparse.Namespace) -> None:
    """Connect the hosts. All but the first one print and draw nothing."""
    from vxl2_jax import hosts

    hosts.start(args.hosts)
    if not hosts.is_first():
        args.quiet, args.plot = True, None
        _discard_output()


def _is_one_of_several(args: argparse.Namespace) -> bool:
    """Whether this is one of several hosts, which would wait for each other when one of them ends early."""
    if not getattr(args, "hosts", None):
        return False
    import jax

    return jax.distributed.is_initialized()


def _lost_host(args: argparse.Namespace, error: RuntimeError) -> bool:
    """Whether an error means that another host has stopped."""
    from vxl2_jax import hosts
    from vxl2_jax.errors import first_line

    return _is_one_of_several(args) and hosts.is_lost(first_line(error))


def _prepare_streams() -> None:
    """Make output possible in any environment.

    Characters that the terminal's encoding lacks are escaped. Raises RequestError if standard output is closed.
    """
    closed = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would get this number, and the output of libraries
            os.open(os.devnull, os.O_RDWR)
            closed.append(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None or 1 in closed:
        raise RequestError("standard output is closed; redirect it to a file or to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _report(problem: str) -> None:
    """Print one line on standard error, if that can be written."""
    with suppress(OSError):
        print(f"vxl2: {printable(' '.join(problem.split()))}", file=sys.stderr, flush=True)


@contextmanager
def _warnings_as_lines() -> Generator[None, None, None]:
    """Two kinds of warnings are one line on standard error; further ones of the same command are left out.

    They are ToyModelWarning, and JAX's about compiled programs that it cannot keep or read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", ToyModelWarning)
        show, shown = warnings.showwarning, set()

        def show_once(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            line = str(message)
            if _CACHE_WARNING in line:
                category, line = ResourceWarning, _cache_problem(line)
            elif not issubclass(category, ToyModelWarning):
                return show(message, category, *place, **more)
            if category not in shown:
                shown.add(category)
                _report(line)

        warnings.showwarning = show_once
        yield


_CACHE_WARNING = "persistent compilation cache"


def _cache_problem(warning: str) -> str:
    import jax

    folder = jax.config.jax_compilation_cache_dir
    return (
        f"{folder}: a compiled program cannot be kept or read ({warning}); free some space there, or remove the folder"
    )


def _discard_output() -> None:
    """Send what standard output still holds to nowhere: the interpreter flushes it once more when it ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
      The exit code: 0 success, 1 out of memory, 2 invalid input, 130 interrupted, 141 output closed by its reader.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = argparse.Namespace()
    try:
        _prepare_streams()
        if argv:
            started = time.perf_counter()
            try:
                args = _parse(argv)
            except SystemExit:  # after --help, --version or a usage error
                sys.stdout.flush()
                raise
            except (
                ValueError
            ) as error:  # from importing JAX: an environment variable with a value that it does not know
                raise RequestError(f"JAX cannot start ({first_line(error)}); correct or unset its variable") from error
            args.started = started
            configure_jax()
            if getattr(args, "hosts", None):
                _join_hosts(args)
            with _warnings_as_lines():
                args.run(args)
        else:
            build_parser(used=()).print_help()
        sys.stdout.flush()
    except Vxl2Error as error:
        _report(str(error))
        if _is_one_of_several(args):
            _end_at_once(2)
        return 2
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:  # a full disk or device behind standard output, or what no command expects
        _discard_output()
        file = f"{error.filename}: " if error.filename else ""
        _report(f"{file}{error.strerror or error}")
        return 2
    except KeyboardInterrupt:
        _report(f"interrupted; {getattr(args, 'interrupted', 'nothing was written')}")
        return 130
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            if isinstance(error, RuntimeError) and _lost_host(args, error):
                _report("another host has stopped; start the same command on all hosts again: a memory file is resumed")
                _end_at_once(1)
            raise
        _report(OUT_OF_MEMORY)
        return 1
    return 0


def _end_at_once(code: int) -> None:
    """End without the tasks of libraries, which would wait for other hosts. The first host serves the others: it ends last."""
    from vxl2_jax import hosts

    time.sleep(2 if hosts.is_first() else 0)
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
