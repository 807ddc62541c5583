"""Make films on which readers of videos are measured: 720p and 1080p, H.264 with short and long groups, HEVC and VP9.

Moving textures and footage under light grain, 30 frames per second. Existing files are replaced when the new ones are
complete. One second of all five films takes about 8 seconds of CPU time.

    python -m experiments.synthetic reading-films runs/reading-films
    python -m experiments.bench reading runs/reading-films
"""

import argparse
import pathlib

from rich.console import Console

from experiments.synthetic import reading_films
from experiments.synthetic.commands import arguments


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=pathlib.Path, metavar="OUT", help="folder to create or to write into")
    names = list(reading_films.FORMS)
    text = f"of {', '.join(names)} (default: all)"
    parser.add_argument("--only", choices=names, nargs="+", default=names, metavar="NAME", help=text)
    arguments.add_count(parser, "--seconds", 60, "length of each film")
    arguments.add_integer(parser, "--seed", arguments.integer(0, 2**31), 0, "random seed of the pictures")


def run(flags: argparse.Namespace) -> str:
    flags.out.mkdir(parents=True, exist_ok=True)
    with Console(stderr=True).status(f"encoding {len(flags.only)} films of {flags.seconds} seconds"):
        written = list(reading_films.write(flags.out, flags.only, flags.seed, flags.seconds))
    return f"Wrote {', '.join(written)} into {flags.out}.\nNext: python -m experiments.bench reading {flags.out}"
