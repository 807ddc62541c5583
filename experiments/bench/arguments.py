"""Command-line arguments that several benchmarks share. One that is left out takes a value that suits the machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from experiments.bench import kernels
from pallas_kernels.attention.tile_sizes import TileSizes


def numbers(text: str) -> list[int]:
    """Positive integers separated by commas."""
    try:
        found = [int(item) for item in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"takes numbers of at least 1, separated by commas, not {text!r}")
    return found


def positive(text: str) -> int:
    """One positive integer."""
    found = numbers(text)
    if len(found) > 1:
        raise argparse.ArgumentTypeError(f"takes one number, not {text!r}")
    return found[0]


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of names separated by commas; "none" is an empty list."""

    def parse(text: str) -> list[str]:
        chosen = [] if text == "none" else text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; choose from {', '.join(known)}")
        return chosen

    return parse


def tiles(text: str) -> list[TileSizes]:
    """Tile sizes "rows,keys,stages,warps;…", of which the last two may be left out."""
    try:
        return [TileSizes(*(int(n) for n in part.split(","))) for part in text.split(";")]
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f'takes "rows,keys,stages,warps;…", not {text!r}') from error


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what all benchmarks have."""
    add = parser.add_argument
    add(
        "--out",
        default="runs/bench",
        metavar="DIR",
        help="folder for JSON, Markdown table and plot (default: runs/bench)",
    )
    add("--limit_s", type=float, default=3000, metavar="S", help="seconds after which nothing new is measured (3000)")
    add("--samples", type=positive, metavar="N", help="runs of which the median counts")


def add_lengths(parser: argparse.ArgumentParser) -> None:
    """Add what benchmarks on random videos of several lengths have."""
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of all random inputs (0)")
    add("--frames", type=numbers, metavar="N,N", help="lengths of videos, at one frame a second")
    add("--torch_python", metavar="FILE", help="an interpreter that has PyTorch (default: the one that runs this)")


def add_kernels(parser: argparse.ArgumentParser, baselines: list[str]) -> None:
    """Add what the benchmarks of kernels have."""
    add, listed = parser.add_argument, ",".join(baselines)
    add(
        "--backends",
        type=names(kernels.NAMES),
        metavar="NAMES",
        help=f"attention kernels, of {','.join(kernels.NAMES)} (default: those written for the machine)",
    )
    add(
        "--baselines",
        type=names(baselines),
        default=listed,
        metavar="NAMES",
        help=f"what to compare with, of {listed}, or none (default: all)",
    )
    add("--tiles", type=tiles, help='tile sizes to try instead of the tuned ones: "rows,keys,stages,warps;…"')
    add(
        "--dtype",
        default="bfloat16",
        choices=["bfloat16", "float16", "float32"],
        help="of inputs and caches (bfloat16)",
    )
    add("--heads", type=positive, metavar="N", help="query heads")
    add("--width", type=positive, metavar="N", help="head width")


def add_language(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of the language model."""
    add = parser.add_argument
    add("--kv_heads", type=positive, metavar="N", help="key heads of the language model")
    add("--visual", type=positive, metavar="N", help="visual tokens per group of four frames")
