"""What several commands share: arguments, help format, loading the model, the progress bar."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from pallas_kernels.attention import NAMES as KERNELS
from vxl2_jax import files, scope
from vxl2_jax.api import Model, load
from vxl2_jax.checkpoints import fetch
from vxl2_jax.files import check_path
from vxl2_jax.loading import DTYPES, WEIGHTS
from vxl2_jax.options import AUTO, RANGES, options_of


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples, and shows defaults."""

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.default not in (None, False, argparse.SUPPRESS)
        return f"{action.help} (default: {action.default})" if shown else action.help or ""


def add_weights(
    parser: Any, none: str = "as stored; the original's are wide", choices: Sequence[str] = WEIGHTS
) -> None:
    """Add --weights. none: what the help text says of the default; choices: the settings that are allowed."""
    auto = "; auto: the widest that fits the device" * (AUTO in choices)
    parser.add_argument(
        "--weights",
        choices=choices,
        help="wide: not quantised, in --dtype; int8 and int4: a half and a third of the bytes of 16-bit weights; w8a8: "
        f"weights in int8, and most activations, too{auto} (default: {none})",
    )


def add_model(parser: argparse.ArgumentParser, default: str | None = "nano") -> None:
    """Add --model, --dtype, --weights, --mesh and --attention."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default=default, help="nano, a checkpoint directory, or a name on the Hugging Face hub"
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of weights and memory (default: float32 on CPU, float16 on a T4, else bfloat16)",
    )
    add_weights(group)
    group.add_argument(
        "--mesh",
        metavar="MESH",
        help="split the language model and its caches over N devices (model=N), the video over N devices (sequence=N), or both "
        "with a comma between (default: one device)",
    )
    group.add_argument(
        "--attention",
        choices=KERNELS,
        default="auto",
        help="attention kernel; auto takes the best one that passes a self-test here, and on a CPU the reference. The "
        "others are interpreted on a CPU: slow, for checking",
    )


def add_options(
    parser: argparse.ArgumentParser,
    cls: type,
    title: str,
    *,
    names: tuple[str, ...] | None = None,
    description: str | None = None,
    defaults: bool = True,
) -> None:
    """Add arguments for options of watching or asking.

    An option that is not given is not an attribute of the parsed arguments (see `given`).

    Args:
      cls: `options.WatchOptions` or `options.AskOptions`.
      title, description: heading of the arguments; arguments of the same title share it.
      names: the options to add; None: all of `cls`.
      defaults: show the default values of `cls`.
    """
    groups = {group.title: group for group in parser._action_groups}
    group = groups.get(title) or parser.add_argument_group(title, description)
    for option in options_of(cls):
        if names is None or option.name in names:
            word = option.none_word if option.default is None else option.default
            group.add_argument(
                option.flag,
                type=option.parse,
                default=argparse.SUPPRESS,
                metavar=option.metavar,
                help=option.describe() + (f" (default: {word})" if defaults else ""),
            )


def path(text: str) -> Path:
    """The `type` of arguments that are paths: never empty, with ~ expanded. Raises RequestError."""
    return check_path(text, "an argument")


def add_number(parser: Any, name: str, **keywords: Any) -> None:
    """Add an argument for a number of `options.RANGES`; keywords as for `add_argument`."""
    parser.add_argument("--" + name.replace("_", "-"), type=partial(RANGES[name].parse, name), **keywords)


def add_output(
    parser: argparse.ArgumentParser, json: str = "print a single JSON document on standard output"
) -> argparse._ArgumentGroup:
    """Add --json, described by `json`, --quiet and --verbose; returns their group."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help=json)
    group.add_argument("--quiet", action="store_true", help="show no progress")
    group.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="print the attention kernel, and --weights, that were chosen, and why",
    )
    return group


def given(args: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The options of `cls` that the command line gave, by name."""
    return {option.name: getattr(args, option.name) for option in options_of(cls) if hasattr(args, option.name)}


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """Add --hosts."""
    parser.add_argument(
        "--hosts",
        metavar="HOSTS",
        help="run the same command on several hosts, whose devices --mesh counts together: auto on a TPU slice and under SLURM or "
        "MPI, else ADDRESS:PORT,COUNT,NUMBER: the address of the first host, how many hosts there are, and which of them this "
        "is, counted from 0",
    )


def check_video(path: str) -> None:
    """Raise VideoError for an empty file, or what is neither file nor folder; called before a large model is loaded."""
    from vxl2_jax.video.hashing import check_readable

    with check_readable(check_path(path, "VIDEO")):
        pass


def is_toy(name: str) -> bool:
    """Whether a model that is not loaded yet is nano, or a directory with a `scope.json`, which says what a toy was trained
    on. Evaluation asks because toys cannot name the letter of an option. Nothing is downloaded: a model on the hub is no
    toy."""
    directory = fetch.NANO if name == "nano" else check_path(name, "the name of a model")
    return files.is_there(directory / scope.FILE)


def load_model(args: argparse.Namespace) -> Model:
    """Load the model named on the command line, with a progress bar. Print what was chosen for it, if asked."""
    if args.attention == "hopper":
        # Interpreted warpgroups wait for each other on threads of XLA's pool, which is as small as the CPU.
        os.environ.setdefault("NPROC", "16")
    with progress("loading", "tensors", args.quiet) as advance:
        how = {"weights": args.weights, "mesh": args.mesh, "attention": args.attention}
        model = load(args.model, args.dtype, **how, progress=advance)
    if args.verbose:
        print(f"attention: {model.kernel_reason}", file=sys.stderr)
        if args.weights:
            print(f"weights: {model.weights_reason}", file=sys.stderr)
    return model


@contextmanager
def progress(label: str, unit: str, quiet: bool) -> Generator[Callable[[int, int], None], None, None]:
    """A progress bar on standard error, with rate and time left. Yields a function (done, total) that updates it.

    Shown on a terminal only: elsewhere Rich would leave an empty line, before 14 also where the bar is disabled.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + " · {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    )
    with nullcontext() if bar.disable else bar:
        task, start = bar.add_task(label, total=None, rate="…"), None

        def advance(done: int, total: int) -> None:
            # What was done before a resume does not count towards the rate.
            nonlocal start
            start = start or (done, time.monotonic())
            rate = (done - start[0]) / max(time.monotonic() - start[1], 1e-6) if done > start[0] else 0.0
            bar.update(task, completed=done, total=total, rate=f"{rate:.1f}/s" if rate else "…")

        yield advance
