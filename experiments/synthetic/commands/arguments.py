"""Command-line flags that several commands share, and a parser that reports errors in one line."""

import argparse
import pathlib
from collections.abc import Callable, Sequence

from experiments.synthetic import clips
from vxl2_jax.errors import RequestError


class Parser(argparse.ArgumentParser):
    """Reports an error in one line; the usage is printed by --help."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see --help)\n")


def integer(low: int, high: int, even: bool = False) -> Callable[[str], int]:
    """An argparse type: an integer from `low` to `high`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high or (even and value % 2):
            kind = "an even number" if even else "an integer"
            raise argparse.ArgumentTypeError(f"{text} is not {kind} from {low} to {high}")
        return value

    return read


def add_integer(
    parser: argparse.ArgumentParser, name: str, kind: Callable[[str], int], default: int, text: str
) -> None:
    """An optional flag with its default in the help."""
    parser.add_argument(name, type=kind, default=default, metavar="N", help=f"{text} (default: {default})")


def add_count(parser: argparse.ArgumentParser, name: str, default: int, text: str, most: int = 10_000) -> None:
    """A flag for a number of things."""
    add_integer(parser, name, integer(1, most), default, text)


def add_video(parser: argparse.ArgumentParser, rate: int) -> None:
    """--seed, --size and --rate."""
    add_integer(parser, "--seed", integer(0, 2**62), 0, "random seed: the same flags make the same files")
    add_integer(parser, "--size", integer(16, 2048, even=True), 196, "width and height of the frames in pixels, even")
    add_integer(parser, "--rate", integer(1, 60), rate, "frames per second")


def add_footage(parser: argparse.ArgumentParser, default: str) -> None:
    """--footage behind the pictures."""
    text = "real video as background: train (in half of the scenes) or test (in all); '' for none"
    parser.add_argument("--footage", choices=clips.FOOTAGE, default=default, help=f"{text} (default: {default!r})")


def add_lengths(parser: argparse.ArgumentParser) -> None:
    """--seconds: the range of clip lengths of a dataset."""
    low, high = clips.RANGE_S
    text = f"shortest and longest clip, 16 to 1000; lengths are drawn uniformly (default: {low} {high})"
    parser.add_argument("--seconds", type=integer(16, 1000), nargs=2, default=clips.RANGE_S, metavar="S", help=text)


def add_folder(parser: argparse.ArgumentParser, default: pathlib.Path | None = None) -> None:
    """--out of a dataset; required without a default."""
    text = "folder to create or resume" + (f" (default: {default})" if default else "")
    parser.add_argument("--out", type=pathlib.Path, default=default, required=not default, metavar="DIR", help=text)


def add_files(parser: argparse.ArgumentParser) -> None:
    """--out and --answers of one video."""
    for name, ending, text in (("--out", "mp4", "the video"), ("--answers", "json", "its questions and answers")):
        parser.add_argument(name, type=pathlib.Path, required=True, metavar=f"F.{ending}", help=f"{text}, to write")


def check_files(out: pathlib.Path, answers: pathlib.Path, sources: Sequence[pathlib.Path] = ()) -> None:
    """Raises RequestError if a video and its answers cannot be written to these paths."""
    for path in (out, answers):
        if not path.parent.is_dir():
            raise RequestError(f"no folder {path.parent} to write {path.name} into; create it")
        if path.is_dir():
            raise RequestError(f"{path} is a folder; name a file")
    written = {out.resolve(), answers.resolve()}
    if len(written) == 1 or written & {path.resolve() for path in sources}:
        raise RequestError("--out, --answers and the videos of --loop must be different files")
