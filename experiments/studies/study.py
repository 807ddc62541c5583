"""What a study is: its help text, its flags, and a function that answers its question."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Result(NamedTuple):
    """What a study found: JSON data, the same as Markdown, and a function that writes its plot to a path."""

    report: dict[str, Any]
    text: str
    draw: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Study:
    """One study.

    Attributes:
      help: the docstring of its module; the first line summarises it.
      run: parsed flags → result. The flags `records` and `out` are always there. Raises Vxl2Error.
      add_flags: adds the study's own flags to a parser.
      of_nano: whether the study runs nano or a model like it, which the flag `model` names.
    """

    help: str
    run: Callable[[argparse.Namespace], Result]
    add_flags: Callable[[argparse.ArgumentParser], None]
    of_nano: bool = True


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """Parser of a whole number from `least` to `most`, as the `type` of a flag."""

    def parse(text: str) -> int:
        value = int(text) if text.lstrip("-").isdecimal() else least - 1
        if value < least or most is not None and value > most:
            bounds = f"from {least}" + f" to {most}" * (most is not None)
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {bounds}")
        return value

    return parse


def listed(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Parser of a comma-separated list, as the `type` of a flag."""
    return lambda text: [parse(part) for part in text.split(",")]


def add_clip_flags(parser: argparse.ArgumentParser, *, seed: int, clips: int | None = None) -> None:
    """Add --seed, --footage and, with a default number, --clips."""
    if clips:
        parser.add_argument("--clips", type=integer(1), default=clips, help="clips of each kind")
    parser.add_argument("--seed", type=integer(0), default=seed, help="of clips and questions; not used in training")
    parser.add_argument("--footage", choices=("", "train", "test"), default="test", help="real video in the background")
